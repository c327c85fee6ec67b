package importer

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// Config says how inputs are read. The zero value reads CSV with commas and JSONL.
type Config struct {
	// Format of all inputs; "" and FormatAuto detect it for each input.
	Format Format

	// Delimiter separates the fields of a CSV record; 0 means a comma. Letters, digits, the underscore, quotes and line
	// ends are not allowed.
	Delimiter rune

	// Columns maps our columns to their names in the inputs: {"from_account": "owner"}. In JSONL it renames the keys at
	// the top of a line; what is inside a GroupContactItem always has the API's names.
	Columns map[string]string

	// Preset reads what another system exports; one of [Presets], "" for none. openim and yunxin read JSON documents
	// and take neither Format, Delimiter nor Columns; the others define column names, which Columns overrides.
	Preset string

	// Owner is the user of rows without one: CSV without that column, JSONL without that key. "" means there is none.
	Owner string

	// MapIDs names a CSV file with the columns old and new. All ids of a row are looked up there: from_account,
	// to_account, to_group_id. A row with an unknown id is rejected. Rejects keep the old ids, except rows over a limit.
	// "" means ids stay as they are.
	MapIDs string

	// ImportID names the import; "" means the first 16 digits of the digest. See [job.ValidImportID]; it does not begin with -.
	ImportID string

	// UsersOnly reads the users of the rows, and nothing else: a row is accepted if its user is valid. The plan has one job
	// without a name for each user. Format may then be FormatUsers.
	UsersOnly bool

	// ChunkSize is how many conversations a call will carry, 1 to 100; 0 means 100. It only affects Summary.Calls.
	ChunkSize int

	// SpoolDir is where rows and jobs go when there are more of them than fit into a little memory: into one file, which
	// is gone when the plan is closed or the process ends. "" means the system's directory for temporary files. The file
	// takes about twice as much room as the input has as CSV, without compression.
	SpoolDir string

	// Stdin is read for the input "-". It may be nil if no input has that name.
	Stdin io.Reader

	// Progress, if not nil, is called by the goroutine that called Read, at most ten times a second and once at the end.
	Progress func(Progress)

	// The rest changes no job; TestSameStream makes sure of that.
	workers  int // that parse and group; 0 means one for each core, and maxWorkers at most
	memory   int // bytes for the rows that are grouped at a time; 0 means groupBytes
	resident int // bytes of the spool that stay in memory; 0 means residentBytes, -1 none

	progressEvery time.Duration // the shortest time between two calls of Progress; 0 means a tenth of a second
}

// maxWorkers bounds memory, however many cores there are: each worker takes some 8 MiB for its blocks. Four of them parse
// three million rows a second, of which the calls take 20,000.
const maxWorkers = 4

// groupBytes holds two partitions, one for each of two cores, of an input with 100 million rows.
const groupBytes = 56 << 20

// Progress is how far a [Read] has come.
type Progress struct {
	Rows  int64 // rows read
	Bytes int64 // bytes read from the inputs, before decompression
	Total int64 // size of the inputs, before decompression; 0 if unknown (standard input, a pipe)

	Sorting bool // all is read, and the rows are sorted into groups
	Sorted  int  // how much of that is done, in percent
}

// A ConfigError says that a Config or the inputs are not valid.
type ConfigError struct {
	Field   string // of Config: "Columns", "Delimiter", …; or "inputs"
	Problem string
}

func (e *ConfigError) Error() string { return e.Problem }

// options are a Config with its defaults in place.
type options struct {
	Config
	columns *columns
	preset  preset
	ids     *idMap // nil if ids stay as they are
}

// normalizeConfig puts the defaults in place. Its error is a [*ConfigError], that of ctx, or an [*Error] of the file that
// MapIDs names.
func normalizeConfig(ctx context.Context, cfg Config) (options, error) {
	o := options{Config: cfg}
	refuse := func(field, format string, args ...any) (options, error) {
		return options{}, &ConfigError{Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	switch cfg.Format {
	case "":
		o.Format = FormatAuto
	case FormatAuto, FormatCSV, FormatJSONL:
	case FormatUsers:
		if !cfg.UsersOnly {
			return refuse("Format", "format users: it has no groups")
		}
	default:
		return refuse("Format", "format %q: want auto, csv or jsonl", string(cfg.Format))
	}
	if cfg.Delimiter == 0 {
		o.Delimiter = ','
	} else if !validDelimiter(cfg.Delimiter) {
		return refuse("Delimiter",
			"delimiter %q: want one character that is no letter, digit, underscore, quote or line end", cfg.Delimiter)
	}
	// A dash at the beginning would make a flag of it, wherever the id is an argument.
	if cfg.ImportID != "" && (!job.ValidImportID(cfg.ImportID) || cfg.ImportID[0] == '-') {
		return refuse("ImportID", "import id %q: want 1 to %d of A–Z, a–z, 0–9, - and _, and no - at its beginning",
			cfg.ImportID, job.MaxImportID)
	}
	switch {
	case cfg.ChunkSize == 0:
		o.ChunkSize = chat.MaxItemsPerCall
	case cfg.ChunkSize < 0 || cfg.ChunkSize > chat.MaxItemsPerCall:
		return refuse("ChunkSize", "chunk size %d: want 1 to %d", cfg.ChunkSize, chat.MaxItemsPerCall)
	}
	o.workers = cmp.Or(o.workers, min(runtime.GOMAXPROCS(0), maxWorkers))
	o.memory = cmp.Or(o.memory, groupBytes)
	o.resident = cmp.Or(o.resident, residentBytes)
	o.progressEvery = cmp.Or(o.progressEvery, 100*time.Millisecond)
	if cfg.Preset != "" {
		var ok bool
		if o.preset, ok = presets[cfg.Preset]; !ok {
			return refuse("Preset", "preset %q: want one of %s", cfg.Preset, strings.Join(Presets(), ", "))
		}
		if o.preset.documents && (o.Format != FormatAuto || cfg.Delimiter != 0 && cfg.Delimiter != ',' || len(cfg.Columns) > 0) {
			return refuse("Preset", "preset %s reads JSON documents: it goes without format, delimiter and columns", cfg.Preset)
		}
	}
	if cfg.Owner != "" && cfg.MapIDs == "" {
		if why := validateID("owner", cfg.Owner, chat.MaxUserIDBytes); why != nil {
			return refuse("Owner", "%s", why.reason)
		}
	}
	renames := maps.Clone(o.preset.columns)
	if renames == nil {
		renames = map[string]string{}
	}
	for name, theirs := range cfg.Columns {
		for ours := range o.preset.columns {
			if canonicalName(ours) == canonicalName(name) {
				delete(renames, ours)
			}
		}
		renames[name] = theirs
	}
	c, problem := newColumns(renames)
	if problem != "" {
		return refuse("Columns", "columns: %s", problem)
	}
	c.hasOwner = cfg.Owner != ""
	o.columns = c
	if cfg.MapIDs != "" {
		ids, err := readIDMap(ctx, cfg.MapIDs)
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
	if o.UsersOnly {
		s += " users only"
	}
	return s
}
