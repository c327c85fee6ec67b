package importer

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/gocarina/gocsv"
)

// A csvRow is filled by gocsv. All fields are strings because gocsv accepts "", "1.9" and "010" as integers.
//
// gocsv parses rows here, parses the file of [Config.MapIDs], and writes rejects. Compared with encoding/csv alone it
// costs 0.5 µs more per row, a quarter of an import, and 1 µs more per reject. Only its Unmarshaller will do: its other
// readers stop at the first bad row or count lines wrongly.
type csvRow struct {
	FromAccount string `csv:"from_account"`
	GroupName   string `csv:"group_name"`
	Type        string `csv:"type"`
	ToAccount   string `csv:"to_account"`
	ToGroupID   string `csv:"to_group_id"`
}

// A csvParser makes rows of blocks, with gocsv.
type csvParser struct {
	head   *header
	comma  rune
	header string // for gocsv
}

func newCSVParser(head *header, comma rune) *csvParser {
	return &csvParser{head, comma, head.forGocsv()}
}

func (c *csvParser) parse(b *block, out rowHandler) {
	for _, at := range b.suspects {
		out.warn(position{b.file, at.first}, fmt.Sprintf("a quote makes one record of lines %d to %d, "+
			"though some of them look like rows: is it closed where it should be?", at.first, at.last))
	}
	bad := b.bad
	rejectBad := func(before int64) {
		for len(bad) > 0 && bad[0].line < before {
			r := c.head.salvage(b.raw[bad[0].from:bad[0].to], bad[0].cut)
			r.position = position{b.file, bad[0].line}
			out.reject(&r, codeParse, bad[0].reason)
			bad = bad[1:]
		}
	}
	defer rejectBad(math.MaxInt64)

	// gocsv knows one spelling of a column and leaves fields empty, without an error, if it does not find it. So each
	// block gets a header of ours; shift corrects the lines for it.
	parser := csv.NewReader(io.MultiReader(strings.NewReader(c.header), bytes.NewReader(b.data)))
	parser.Comma = c.comma
	parser.FieldsPerRecord = len(c.head.cols)
	parser.ReuseRecord = true
	shift := b.line - 2
	rows, err := gocsv.NewUnmarshaller(parser, &csvRow{})
	if err != nil {
		panic(fmt.Sprintf("importer: gocsv refuses our own header %q: %v", c.header, err))
	}
	r := row{noType: !c.head.has(colType), noOwner: !c.head.has(colFrom)}
	for {
		v, err := rows.Read()
		if err == io.EOF {
			return
		}
		if err != nil {
			r, line, reason := c.explain(b.data, parser.InputOffset()-int64(len(c.header)), err)
			r.position = position{b.file, line + shift}
			rejectBad(r.line)
			out.reject(&r, codeParse, reason)
			continue
		}
		f := v.(*csvRow)
		line, _ := parser.FieldPos(0)
		r.position, r.invalidReason = position{b.file, int64(line) + shift}, ""
		rejectBad(r.line)
		r.field = [numColumns]string{f.FromAccount, f.GroupName, f.Type, f.ToAccount, f.ToGroupID}
		if c.head.isRepeated(&r) {
			out.reject(&r, codeParse, "the header stands here again")
			continue
		}
		if c.head.isOther(&r) {
			out.refuse(r.line, "another header stands here, with its columns in another order", "give the files one by one")
			return
		}
		out.row(&r)
	}
}

// explain says why the parser rejected the record that ends at data[end], with the fields that could be found and its line
// as the parser counts. It is a line without quotes whose number of fields differs from the header's.
func (c *csvParser) explain(data []byte, end int64, err error) (r row, line int64, reason string) {
	line = 2
	var syntax *csv.ParseError
	if errors.As(err, &syntax) {
		line = int64(syntax.StartLine)
	}
	if !errors.Is(err, csv.ErrFieldCount) {
		// The splitter lets nothing else through; if it did, the row must still be counted.
		return r, line, err.Error()
	}
	raw := trimEnd(data[:end])
	raw = raw[bytes.LastIndexByte(raw, '\n')+1:]
	return c.head.salvage(raw, false), line, fieldCount(strings.Count(string(raw), c.head.comma)+1, len(c.head.cols))
}
