// Package importer reads contact groups from CSV and JSONL and turns them into jobs, one per group. It sends nothing:
// [Read] reads and checks the whole input and returns a [Plan], and only a caller that accepts the summary, the rejects
// and the warnings of the plan ranges over its jobs.
//
// The path of a row, by the files of this package:
//
//	source → compression → split → parse → validate → spool → partition → group → layout → spool → plan
//
// What parse, validate or group rejects is spooled as a reject instead. Only pipeline.go knows all stages:
//
//	one goroutine            up to 4 parsers           caller of Read           up to 4 groupers
//
//	source                   parse ─► validate         spool, by the hash       group ─► layout ─► spool
//	└─► compression          parse ─► validate         of the user, in the      group ─► layout ─► spool
//	    └─► split ─► blocks ─►    …          ─► blocks ─► order of the input ─►      …                  ─► Plan
//
// # Input
//
// A CSV input begins with a header that names the columns from_account, group_name, type, to_account and to_group_id
// in any order and case, or by their names in the API (From_Account, GroupName, Type, To_Account, ToGroupId);
// [Config.Columns] gives other names. An input without a type column is read by which of the two ids a row has. A
// JSONL input has one object on a line: a row with the same keys, or the whole body of a create_contact_group
// request, which counts as one row for every conversation in it. Columns and keys of other names are ignored and
// reported once. Gzip and zstd are detected by their first bytes.
//
// # Rows
//
// Every row is in the end one of three: accepted, duplicate (an earlier row put the same conversation into the group) or
// rejected. What is wrong with a row never costs another row, and is never an error of [Read]: an error means that
// an input cannot be read at all.
//
// Nothing is trimmed or fixed on the way. An id that begins or ends with a space is rejected, a group name is taken
// as it stands.
//
// # Size
//
// An input may have any size, its rows any order, and one user any share of them: memory stays bounded. Valid rows are
// spooled to 512 partitions by a hash of the user. When the input has ended, each partition is read again, in the order
// of the input, and becomes a run: the jobs of its users, first all first groups, then all second ones, each of these
// ranks in the order of the hash. A partition that accepts more than memory was given for is split by more bits of the
// hash. That is always enough, and needs no merge sort, because a row over a limit leaves nothing in memory: of one user
// there are 20 groups of 1,000 conversations at most, however many rows ask for more.
//
// The jobs of the whole input come by (rank of the group among those of its user, hash of the user, user). This is as
// far apart as the groups of a user can be, which matters because calls for one user may not overlap, and it needs no
// sorting: each run has one segment for each rank. The order depends on the rows alone. Memory, partitions and cores
// have no influence on it.
//
// # Syncs
//
// A sync is an import that recurs: what its earlier imports have put into the groups is the [Base] of the next plan, which
// has jobs for the rest only. The base is spooled by the hash of the user, like rows; base.go folds it and groups the rows
// of each partition on top, and [Plan.Snapshot] gives it folded, as the base of the next plan. Where a limit cuts, what is
// there stays, and then names and ids decide instead of the order of the rows.
//
// # Performance
//
// Measured on 2 cores of a virtual machine, in CPU seconds. Groups have 20 conversations, users 10 groups; in "half", every
// second row is of one user, and nearly all of these go over the limits and are rejected. parse is a bare loop of gocsv,
// publish puts as many jobs of that size on an embedded server, check and import are those commands as whole processes,
// server included. Memory is in MiB, and so is disk, which is what the spool takes for a while. What is empty was not
// measured.
//
//	rows   input     size       parse   check   publish  import    check    import / (parse  memory:  memory:  disk
//	                                                               / parse  + publish)       check    import
//	1 M    shuffled     30 MiB  0.57 s  1.04 s    1.48 s    2.58 s  1.82     1.26               60       110      36
//	2 M    shuffled     62 MiB  1.02 s  1.63 s    2.43 s    4.08 s  1.60     1.18               61       113      87
//	2 M    sorted       62 MiB  1.32 s  1.55 s    2.13 s    4.14 s  1.18     1.20               62       112      87
//	2 M    half         57 MiB  0.97 s  2.02 s    2.05 s            2.09                        62        97      96
//	2 M    JSONL       167 MiB          1.83 s    2.23 s    4.34 s                              57       117      87
//	2 M    gzip         18 MiB          1.92 s    2.25 s    4.42 s                              63       108      87
//	2 M    zstd         15 MiB          1.76 s    2.24 s    4.06 s                              70       117      87
//	20 M   shuffled    663 MiB   9.4 s  17.0 s    21.1 s    39.8 s  1.80     1.30               73       143
//	20 M   half        607 MiB   9.7 s  15.0 s    15.1 s    34.6 s  1.54     1.39               67       117
//	100 M  shuffled  3,443 MiB  45.9 s  85.4 s   104.5 s   217.1 s  1.86     1.44              123       170
//
// Importing costs about 2 µs of CPU per row. Small imports pay a fixed start-up cost of half a second, until the process has
// its memory; in those of 100 million rows, what is sorted at a time no longer fits into the caches of a core, and what is
// spooled no longer into the memory that the system has free. The machine is shared: the same process takes up to a sixth
// more or less when it is measured again, and once it took half as much again. The lines of 20 M and 100 M rows are of a
// version whose spool used its room again; with 20 M shuffled rows the one of today takes 1,071 MiB of disk. With one core instead of two, check of 2 M
// rows took 1.5 to 1.6 s by the clock instead of 1.0 s, and import 4.2 to 4.6 s instead of 3.3 to 3.8 s, because a stream is
// written one message after the other.
//
// This measures it again:
//
//	go test ./cmd/groupferry -run TestScale -v -timeout 2h -scale 2e6
package importer

import (
	"errors"
	"fmt"
)

// An Error says why an input cannot be read at all, and what to do about it.
type Error struct {
	File    string // name of the input as it was given
	Line    int64  // physical line from 1; 0 when the problem has no line
	Problem string // what is wrong
	Hint    string // what to do; may be ""
	Err     error  // the cause, for errors.Is; may be nil, and is not part of the text
}

// ErrEmpty is wrapped by the error of a CSV input without any content, not even a header.
var ErrEmpty = errors.New("empty")

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s = fmt.Sprintf("%s: line %d", s, e.Line)
	}
	s += ": " + e.Problem
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
