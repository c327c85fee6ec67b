package importer

import (
	"bytes"
	"path/filepath"
	"strings"
)

// A Format is the format of an input.
type Format string

// The zero value of Format means [FormatAuto].
const (
	FormatAuto  Format = "auto"  // by name (.csv, .jsonl, .ndjson, also before .gz and .zst), else by the first byte
	FormatCSV   Format = "csv"   // a header, then a row in each record
	FormatJSONL Format = "jsonl" // a row or a whole request body on each line
	FormatUsers Format = "users" // with [Config.UsersOnly]: a user id on each line
)

// formatDocuments is what some presets read. It is not part of the API.
const formatDocuments Format = "documents"

// detectFormat decides by the name of an input, or else by the first byte that is not white space.
func detectFormat(name string, head []byte) Format {
	name = strings.ToLower(name)
	for _, ext := range []string{".gz", ".zst"} {
		name = strings.TrimSuffix(name, ext)
	}
	switch filepath.Ext(name) {
	case ".csv":
		return FormatCSV
	case ".jsonl", ".ndjson":
		return FormatJSONL
	}
	if bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")) {
		return FormatJSONL
	}
	return FormatCSV
}

// isUserList reports whether content is a user id on each line, if it is not JSON: the first line has one field. The header
// of a CSV input has more, whatever separates them.
func isUserList(head []byte, delimiter rune) bool {
	head = bytes.TrimLeft(head, "\r\n")
	if end := bytes.IndexAny(head, "\r\n"); end >= 0 {
		head = head[:end]
	}
	return len(head) > 0 && !bytes.ContainsAny(head, ",;\t|\"{") && !bytes.ContainsRune(head, delimiter)
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// checkEncoding detects, by the first bytes, content of which every row would be rejected.
func checkEncoding(head []byte) error {
	for _, magic := range []struct{ bytes, what string }{
		{"PK\x03\x04", "a spreadsheet or a zip archive"},
		{"BZh", "compressed with bzip2"},
		{"\xfd7zXZ\x00", "compressed with xz"},
	} {
		if bytes.HasPrefix(head, []byte(magic.bytes)) {
			return &Error{Problem: "is " + magic.what,
				Hint: "export or unpack it first: CSV, JSONL, gzip and zstd can be read"}
		}
	}
	utf16 := func(name string) error {
		return &Error{Problem: "is UTF-16 text", Hint: "convert it: iconv -f " + name + " -t UTF-8 FILE > utf8.csv"}
	}
	switch {
	case bytes.HasPrefix(head, []byte("\xff\xfe")), bytes.HasPrefix(head, []byte("\xfe\xff")):
		return utf16("UTF-16")
	case len(head) >= 2 && head[0] != 0 && head[1] == 0:
		return utf16("UTF-16LE")
	case len(head) >= 2 && head[0] == 0 && head[1] != 0:
		return utf16("UTF-16BE")
	}
	return nil
}
