package queue

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"strings"
)

// Names are the names of an import's files, compressed: there may be thousands, and the record is one message.
type Names []byte

// maxNames is the size of names with which a record fits into the 1 MiB that a server takes by default. In JSON they take
// a third more.
const maxNames = 700 << 10

// PackNames compresses names. The error says that they are too many for a record.
func PackNames(names []string) (Names, error) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	if err != nil { // the level is valid
		panic(err)
	}
	for _, name := range names {
		io.WriteString(w, name+"\x00") // which no name has in it
	}
	w.Close()
	if b.Len() > maxNames {
		return nil, fmt.Errorf("the names of %d files are too long for one import: import fewer files at a time, "+
			"join some of them, or give them shorter names", len(names))
	}
	return b.Bytes(), nil
}

// Unpack returns the names.
func (n Names) Unpack() ([]string, error) {
	if len(n) == 0 {
		return nil, nil
	}
	b, err := io.ReadAll(flate.NewReader(bytes.NewReader(n)))
	if err != nil {
		return nil, fmt.Errorf("names of files: %w", err)
	}
	names := strings.Split(string(b), "\x00")
	return names[:len(names)-1], nil
}
