package main

import (
	"io"
	"os"
	"regexp"
	"strings"
	"unicode"

	"golang.org/x/term"
)

// A look is what a terminal shows. The zero value is none: a file, a pipe, or a terminal that cannot be written over.
type look struct {
	width, height int
	unicode       bool // lines and blocks, beside ASCII
	color         bool
}

// lookOf says what is shown of what is written to w. The size may be another one the next time.
func lookOf(w io.Writer) look {
	if !onTerminal(w) {
		return look{}
	}
	l := look{width: 80, height: 24, unicode: drawsUnicode(os.Getenv), color: os.Getenv("NO_COLOR") == ""}
	if width, height, err := term.GetSize(int(w.(*os.File).Fd())); err == nil && width > 0 && height > 0 {
		l.width, l.height = width, height
	}
	return l
}

// onTerminal reports whether what is written to w is shown on a terminal that can be written over.
func onTerminal(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("TERM") != "dumb" && os.Getenv("CI") == "" && obeysEscapes(w.(*os.File))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// isUTF8 reports whether the locale of an environment has UTF-8.
func isUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if locale := strings.ToLower(getenv(name)); locale != "" {
			return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
		}
	}
	return false
}

// A color is one of the 16 that each terminal has, so that it suits a light one and a dark one.
type color string

const (
	red    color = "\x1b[31m"
	green  color = "\x1b[32m"
	yellow color = "\x1b[33m"
	cyan   color = "\x1b[36m"
)

func (l look) paint(c color, text string) string {
	if !l.color || c == "" || text == "" {
		return text
	}
	return string(c) + text + "\x1b[0m"
}

// wide are the characters that take two columns, but for most of the emoji.
var wide = []*unicode.RangeTable{unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana, unicode.Bopomofo, unicode.Yi}

// columns is how many columns of a terminal a text without control characters takes.
func columns(text string) int {
	n := 0
	for _, r := range text {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case 0x3000 <= r && r <= 0x303e, 0xff01 <= r && r <= 0xff60, 0xffe0 <= r && r <= 0xffe6, 0x1f300 <= r && r <= 0x1faff,
		unicode.In(r, wide...) && !(0xff61 <= r && r <= 0xffdc): // which are the narrow forms
		return 2
	}
	return 1
}

// cut shortens a text to so many columns, with … at its end if something is missing.
func cut(text string, most int) string {
	if columns(text) <= most {
		return text
	}
	used := 1 // of …
	for i, r := range text {
		if used += runeColumns(r); used > most {
			return text[:i] + "…"[:min(max(most, 0), 1)*len("…")]
		}
	}
	return text
}

// What is colored in a report: numbers that should be 0, and how far an import is.
var (
	colors       = regexp.MustCompile(`\x1b\[[0-9;]*m`)
	badNumber    = regexp.MustCompile(`\b(?:failed|partial|bad requests) [1-9][0-9]*(?:,[0-9]{3})*`)
	notedNumber  = regexp.MustCompile(`\b(?:rejected|throttled|dropped|withheld) [1-9][0-9]*(?:,[0-9]{3})*`)
	stateInLine  = regexp.MustCompile(`^(import \S+ \(.*\): )(\w+)(, paused)?`)
	haltInLine   = regexp.MustCompile(`^(halted|paused) by `)
	damageInLine = regexp.MustCompile(`^  damaged .*`)
)

// colored adds colors to a report, and changes nothing else.
func (l look) colored(text string) string {
	if !l.color {
		return text
	}
	paint := func(c color) func(string) string { return func(s string) string { return l.paint(c, s) } }
	var b strings.Builder
	header := ""
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, columnNames[columnImport]+" "):
			header = line
		case header != "":
			line = l.coloredRow(line, header)
		case haltInLine.MatchString(line):
			line = l.paint(stateColor(line[:len("halted")]), line[:len("halted")]) + line[len("halted"):]
		case damageInLine.MatchString(line):
			line = damageInLine.ReplaceAllStringFunc(line, paint(red))
		case strings.HasPrefix(line, "  "):
			line = badNumber.ReplaceAllStringFunc(line, paint(red))
			line = notedNumber.ReplaceAllStringFunc(line, paint(yellow))
		default:
			if m := stateInLine.FindStringSubmatch(line); m != nil {
				line = m[1] + l.paint(stateColor(m[2]), m[2]) + l.paint(yellow, m[3]) + line[len(m[0]):]
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// coloredRow adds colors to a line of the table of imports.
func (l look) coloredRow(line, header string) string {
	row := []rune(line) // before the last column a character is as wide as those of the header
	end := func(column int) int { return strings.Index(header, columnNames[column]) + len(columnNames[column]) }
	number := func(from, to int, c color) string {
		text := string(row[from:to])
		if n := strings.TrimLeft(text, " "); n != "0" {
			text = strings.TrimSuffix(text, n) + l.paint(c, n)
		}
		return text
	}
	stateAt, done, failed, rejected := strings.Index(header, columnNames[columnState]), end(columnDone), end(columnFailed), end(columnRejected)
	if len(row) <= rejected { // it is cut off, or none of an import
		return line
	}
	state, _, _ := strings.Cut(string(row[stateAt:]), " ")
	return string(row[:stateAt]) + l.paint(stateColor(state), state) + string(row[stateAt+len(state):done]) +
		number(done, failed, red) + number(failed, rejected, yellow) + string(row[rejected:])
}

// stateColor is that of the state of an import, or of all.
func stateColor(state string) color {
	switch state {
	case "complete":
		return green
	case "halted", "damaged":
		return red
	case "paused", "cancelled", "superseded", "deleting":
		return yellow
	}
	return ""
}
