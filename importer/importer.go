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
//	one goroutine            a parser on each core     caller of Read           a grouper on each core
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
package importer

import "fmt"

// An Error says why an input cannot be read at all, and what to do about it.
type Error struct {
	File    string // name of the input as it was given
	Line    int64  // physical line from 1; 0 when the problem has no line
	Problem string // what is wrong
	Hint    string // what to do; may be ""
	Err     error  // the cause, for errors.Is; may be nil, and is not part of the text
}

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
