// Package importer reads contact groups from CSV and JSONL and turns them into jobs, one per group. It sends nothing:
// [Read] reads and checks the whole input and gives back a [Plan], and only a caller that is content with the
// summary, the rejects and the warnings of the plan goes on and ranges over its jobs.
//
//	files, globs, -                rows                     partitions              runs                  jobs
//
//	a.csv.gz ─┐            ┌─ gocsv ─┐                       ┌─────────┐     ┌ rank 0 │ rank 1 │ … ┐
//	b.jsonl   ├─ blocks ─►─┤         ├─ check ─ ok ─► hash ─►│ 0 … 511 ├─ ► ─┤ rank 0 │ rank 1 │ … ├─► Plan.Jobs
//	-        ─┘  of whole  └─ JSON ──┘    │          of user └─────────┘     └ rank 0 │ rank 1 │ … ┘   (all of rank 0,
//	             records                  └─ no ─► reject, with file, line, code and reason              then rank 1, …)
//
// # Input
//
// A CSV input begins with a header that names the columns from_account, group_name, type, to_account and to_group_id
// in any order and case, or by their names in the API (From_Account, GroupName, Type, To_Account, ToGroupId);
// [Config.Columns] gives other names. An input without a type column is read by which of the two ids a row has. A
// JSONL input has one object on a line: a row with the same keys, or the whole body of a create_contact_group
// request, which counts as one row for every conversation in it. Columns and keys of other names are ignored and
// said once. Gzip and zstd are told by their first bytes.
//
// # Rows
//
// Every row ends up in exactly one of three heaps: accepted, duplicate (an earlier row put the same conversation into
// the group) or rejected. What is wrong with a row never costs another row, and is never an error of [Read]: an error
// means that nothing can be said about an input at all.
//
// Nothing is trimmed or mended on the way. An id that begins or ends with a space is rejected, a group name is taken
// as it stands.
//
// # Size
//
// An input may have any size, its rows any order, and one user any share of them: memory stays the same. Rows that
// pass their check are put aside in 512 partitions by a hash of the user, in memory as long as they are few, else in
// one file on disk. When the input has ended, each partition is read again, in the order of the input, and its
// accepted rows become a run: the jobs of its users, first all first groups, then all second ones, each of these ranks
// in the order of the hash. A partition that accepts more than memory was given for is split by more bits of the hash.
// That is always enough, and needs no sorting by merges, because a row over a limit leaves nothing in memory: of one
// user there are 20 groups of 1,000 conversations at most, however many rows ask for more.
//
// The jobs of the whole input go out by (rank of the group among those of its user, hash of the user, user). This is as
// far apart as the groups of a user can stand, which matters because calls for one user may not overlap, and it costs
// nothing: going through the ranks, and for each through the partitions, reads every run from 20 places at most. The
// order depends on the rows alone. Memory, partitions and cores change how it is come by and nothing else.
//
// # Performance
//
// Measured on 2 cores of a virtual machine, in CPU seconds. Groups have 20 conversations, users 10 groups; in "half", every
// second row is of one user, and nearly all of these go over the limits and are rejected. parse is a bare loop of gocsv,
// publish puts as many jobs of that size on an embedded server, check and import are those commands as whole processes,
// server included. Memory is in MiB, and so is disk, which is what sorting takes for a while.
//
//	rows   input     size       parse   check   publish  import    check    import / (parse  memory:  memory:  disk
//	                                                               / parse  + publish)       check    import
//	1 M    shuffled     30 MiB  0.57 s  1.04 s    1.48 s    2.58 s  1.82     1.26               61       101      20
//	2 M    shuffled     62 MiB  1.02 s  1.63 s    2.43 s    4.08 s  1.60     1.18               61       101      53
//	2 M    sorted       62 MiB  1.32 s  1.55 s    2.13 s    4.14 s  1.18     1.20               61        97      53
//	2 M    half         57 MiB  0.97 s  2.02 s    2.05 s    3.85 s  2.09     1.28               62        83      49
//	2 M    JSONL       167 MiB          1.83 s    2.23 s    4.34 s                              58       101      53
//	2 M    gzip         18 MiB          1.92 s    2.25 s    4.42 s                              63       101      53
//	2 M    zstd         15 MiB          1.76 s    2.24 s    4.06 s                              72       103      53
//	20 M   shuffled    663 MiB   9.4 s  17.0 s    21.1 s    39.8 s  1.80     1.30               73       143     699
//	20 M   half        607 MiB   9.7 s  15.0 s    15.1 s    34.6 s  1.54     1.39               67       117     647
//	100 M  shuffled  3,443 MiB  45.9 s  85.4 s   104.5 s   217.1 s  1.86     1.44              123       170   3,681
//
// Importing costs about 2 µs of CPU per row. Small imports pay a fixed start-up cost of half a second, until the process has
// its memory; in those of 100 million rows, what is sorted at a time no longer fits into the caches of a core, and what is
// spooled no longer into the memory that the system has free. The machine is shared: the same process takes up to a sixth
// more or less when it is measured again, and once it took half as much again. With one core instead of two, check of 2 M
// rows took 1.5 to 1.6 s by the clock instead of 1.0 s, and import 4.2 to 4.6 s instead of 3.3 to 3.8 s, because a stream is
// written one message after the other.
//
// This measures it again:
//
//	go test ./cmd/groupferry -run TestScale -v -timeout 2h -scale 2e6
package importer

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A Format says how an input is written.
type Format string

// The zero value of Format means [FormatAuto].
const (
	FormatAuto  Format = "auto"  // by name (.csv, .jsonl, .ndjson, also before .gz and .zst), else by the first byte
	FormatCSV   Format = "csv"   // a header, then a row in each record
	FormatJSONL Format = "jsonl" // a row or a whole request body on each line
)

// formatDocuments is what some presets read; nobody has to ask for it.
const formatDocuments Format = "documents"

// Config says how inputs are read. The zero value reads CSV with commas and JSONL.
type Config struct {
	// Format of all inputs; "" and FormatAuto tell it for each input by itself.
	Format Format

	// Delimiter stands between the fields of a CSV record; 0 means a comma. Letters, digits, the underscore, quotes
	// and line ends cannot be delimiters.
	Delimiter rune

	// Columns gives our column the name that it has in the inputs: {"from_account": "owner"}. In JSONL it renames the
	// keys at the top of a line; what is inside a GroupContactItem always has the API's names.
	Columns map[string]string

	// Preset reads what another system exports; one of [Presets], "" for none. openim and yunxin read JSON documents
	// and take neither Format, Delimiter nor Columns; the others bring names of columns, which Columns goes before.
	Preset string

	// Owner is the user of rows whose input does not say from whom they are: CSV without that column, JSONL without
	// that key. "" means there is none.
	Owner string

	// MapIDs names a CSV file with the columns old and new. Every id of every row is looked up there, that of the
	// user, of the other user or of the group chat, and a row with an id that is not there is rejected; rejects keep the
	// old ids, but for rows over a limit. "" means ids stay as they are.
	MapIDs string

	// ImportID names the import; "" means the first 16 digits of the digest. See [job.ValidImportID].
	ImportID string

	// ChunkSize is how many conversations a call will carry, 1 to 100; 0 means 100. It counts the calls of the
	// summary and changes nothing else.
	ChunkSize int

	// SpoolDir is where rows are put aside when they are more than fit into a little memory, in one file that is
	// removed by [Plan.Close]; "" means the system's directory for such files. It takes about as much room as CSV has
	// content, and no more than JSONL has unless its ids are long.
	SpoolDir string

	// Stdin is what the input "-" reads. It may be nil when no input has that name.
	Stdin io.Reader

	// Progress, if not nil, hears from the goroutine that called Read how far it is, at most ten times a second and
	// once at the end.
	Progress func(Progress)

	// What follows changes no job, whatever its value: tests make sure of that.
	workers  int // that parse and sort; 0 means one for each core
	memory   int // bytes for the rows that are sorted at a time; 0 means 56 MiB
	resident int // bytes of what is put aside that stay in memory; 0 means residentBytes, -1 none
}

// sortBytes holds four partitions, one for each of four cores, of an input with 100 million rows.
const sortBytes = 56 << 20

// Progress is how far a [Read] has come.
type Progress struct {
	Rows  int64 // rows met
	Bytes int64 // bytes read from the inputs, before decompression
	Total int64 // bytes that the inputs have, before decompression; 0 when nobody knows (standard input, a pipe)
}

// A ConfigError tells that Read was asked for something that it cannot do.
type ConfigError struct {
	Field   string // of Config: "Columns", "Delimiter", …; or "inputs"
	Problem string
}

func (e *ConfigError) Error() string { return e.Problem }

// An Error tells why an input cannot be read at all, and what to do about it.
type Error struct {
	File    string // name of the input as it was given
	Line    int64  // physical line from 1; 0 when the problem has no line
	Problem string // what is wrong
	Hint    string // what to do; may be ""
	Err     error  // what made it so, for errors.Is; may be nil, and is not part of the text
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

// Read reads and checks all inputs: names of files, globs, and "-" for standard input, in the order given, the
// matches of a glob in the order of their names. An input that is named twice is read once.
//
// The error is a [*ConfigError] when cfg or inputs cannot be used, the error of ctx when that ended, and else an [*Error] for
// the first input about which nothing can be said: no such file, an archive that is cut off, no header, UTF-16 and
// the like. Rows that cannot be used are no error but rejects of the plan.
func Read(ctx context.Context, inputs []string, cfg Config) (*Plan, error) {
	o, err := settle(cfg)
	if err != nil {
		return nil, err
	}
	spool, err := newSpool(o.SpoolDir, o.resident)
	if err != nil {
		return nil, err
	}
	in := newIntake(o, spool)
	p, err := in.readAll(ctx, inputs)
	if err != nil {
		spool.close() // the error at hand says more
		return nil, err
	}
	return p, nil
}

func (in *intake) readAll(ctx context.Context, inputs []string) (*Plan, error) {
	sources, err := in.expand(inputs)
	if err != nil {
		return nil, err
	}
	var need int64
	for _, s := range sources {
		need += in.spooled(s)
	}
	if need > residentBytes {
		if err := in.spool.require(need); err != nil {
			return nil, err
		}
	}
	for _, s := range sources {
		if err := in.readSource(ctx, s); err != nil {
			return nil, err
		}
	}
	in.blocks = nil
	return in.plan(ctx)
}

// options are a Config with its defaults in place.
type options struct {
	Config
	columns *columns
	preset  preset
	ids     *idMap // nil if ids stay as they are
}

func settle(cfg Config) (options, error) {
	o := options{Config: cfg}
	refuse := func(field, format string, args ...any) (options, error) {
		return options{}, &ConfigError{Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	switch cfg.Format {
	case "":
		o.Format = FormatAuto
	case FormatAuto, FormatCSV, FormatJSONL:
	default:
		return refuse("Format", "format %q: want auto, csv or jsonl", string(cfg.Format))
	}
	if cfg.Delimiter == 0 {
		o.Delimiter = ','
	} else if !validDelimiter(cfg.Delimiter) {
		return refuse("Delimiter",
			"delimiter %q: want one character that is no letter, digit, underscore, quote or line end", cfg.Delimiter)
	}
	if cfg.ImportID != "" && !job.ValidImportID(cfg.ImportID) {
		return refuse("ImportID", "import id %q: want 1 to %d of A–Z, a–z, 0–9, - and _", cfg.ImportID, job.MaxImportID)
	}
	switch {
	case cfg.ChunkSize == 0:
		o.ChunkSize = chat.MaxItemsPerCall
	case cfg.ChunkSize < 0 || cfg.ChunkSize > chat.MaxItemsPerCall:
		return refuse("ChunkSize", "chunk size %d: want 1 to %d", cfg.ChunkSize, chat.MaxItemsPerCall)
	}
	if o.memory == 0 {
		o.memory = sortBytes
	}
	if o.resident == 0 {
		o.resident = residentBytes
	}
	if cfg.Preset != "" {
		var ok bool
		if o.preset, ok = presets[cfg.Preset]; !ok {
			return refuse("Preset", "preset %q: want one of %s", cfg.Preset, strings.Join(Presets(), ", "))
		}
		if o.preset.documents && (o.Format != FormatAuto || cfg.Delimiter != 0 && cfg.Delimiter != ',' || len(cfg.Columns) > 0) {
			return refuse("Preset", "preset %s reads JSON documents: it goes without format, delimiter and columns", cfg.Preset)
		}
	}
	if cfg.Owner != "" {
		if f := checkID("owner", cfg.Owner, chat.MaxUserIDBytes); f != nil && cfg.MapIDs == "" {
			return refuse("Owner", "%s", f.reason)
		}
	}
	renames := maps.Clone(o.preset.columns)
	if renames == nil {
		renames = map[string]string{}
	}
	for name, theirs := range cfg.Columns {
		for ours := range o.preset.columns {
			if canonical(ours) == canonical(name) {
				delete(renames, ours)
			}
		}
		renames[name] = theirs
	}
	c, problem := newColumns(renames)
	if problem != "" {
		return refuse("Columns", "columns: %s", problem)
	}
	c.owned = cfg.Owner != ""
	o.columns = c
	if cfg.MapIDs != "" {
		ids, err := readIDMap(cfg.MapIDs)
		if err != nil {
			return options{}, err
		}
		o.ids = ids
	}
	return o, nil
}

// validDelimiter also keeps clear of the characters in our own column names: gocsv gets a header made of them.
func validDelimiter(r rune) bool {
	switch r {
	case '"', '\r', '\n', '_', 0, unicode.ReplacementChar:
		return false
	}
	return r > 0 && r <= unicode.MaxRune && !(0xD800 <= r && r < 0xE000) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
}

// jobOptions lists, for the digest, the options by which the same bytes become other jobs.
func (o *options) jobOptions(f Format) string {
	s := string(f)
	if f == FormatCSV {
		s += fmt.Sprintf(" delimiter %q", o.Delimiter)
	}
	names := o.columns.renamed
	for _, c := range slices.Sorted(maps.Keys(names)) {
		s += fmt.Sprintf(" %s=%q", columnNames[c], names[c])
	}
	for _, option := range []struct{ name, value string }{{"preset", o.Preset}, {"owner", o.Owner}} {
		if option.value != "" {
			s += fmt.Sprintf(" %s %q", option.name, option.value)
		}
	}
	if o.ids != nil {
		s += " ids " + o.ids.digest
	}
	return s
}
