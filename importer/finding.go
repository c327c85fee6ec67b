package importer

import (
	"cmp"
	"slices"
	"strings"
)

// Findings are what a person should look at although it is accepted. However much there is of it, little is kept: for
// each kind how often and where first, and the first maxWarnings warnings that are about one place each.
type findings struct {
	spaced  finding // group names that begin or end with white space
	alike   finding // groups of a user whose names differ in case and spaces only
	foreign [numForeign]finding

	warnings []Warning
	warned   int64 // in all
}

// maxWarnings is how many warnings are kept of those about one place each.
const maxWarnings = 1000

type finding struct {
	n    int64
	file int
	line int64
}

func (f *finding) found(file int, line int64) { f.add(finding{1, file, line}) }

func (f *finding) add(g finding) {
	if g.n > 0 && (f.n == 0 || cmp.Or(cmp.Compare(g.file, f.file), cmp.Compare(g.line, f.line)) < 0) {
		f.file, f.line = g.file, g.line
	}
	f.n += g.n
}

func (f *findings) warn(w Warning) {
	f.warned++
	f.warnings = append(f.warnings, w)
	if len(f.warnings) >= 2*maxWarnings {
		f.trim()
	}
}

// trim sorts the warnings and keeps the first ones.
func (f *findings) trim() {
	slices.SortStableFunc(f.warnings, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.Line, b.Line), cmp.Compare(a.FromAccount, b.FromAccount))
	})
	f.warnings = f.warnings[:min(len(f.warnings), maxWarnings)]
}

func (f *findings) add(g *findings) {
	f.spaced.add(g.spaced)
	f.alike.add(g.alike)
	for i := range f.foreign {
		f.foreign[i].add(g.foreign[i])
	}
	for _, w := range g.warnings {
		f.warn(w)
	}
	f.warned += g.warned - int64(len(g.warnings))
}

// A foreign is an id that is well formed and yet more likely to be what another system calls a conversation.
type foreign int

const (
	foreignSDK foreign = iota
	foreignOpenIM
	foreignYunxin
	foreignXMPP
	foreignGroup
	numForeign

	native foreign = -1
)

// foreignTexts say what to do about it. Each is followed by a number.
var foreignTexts = [numForeign]string{
	foreignSDK:    "ids look like conversation ids of a client SDK (c2c_…, group_…); --preset sdk takes them apart",
	foreignOpenIM: "ids look like OpenIM's conversation ids (si_…, sg_…); --preset openim takes them apart",
	foreignYunxin: "ids look like NetEase Yunxin's conversation ids (owner|1|target); --preset yunxin takes them apart",
	foreignXMPP:   "user ids look like XMPP addresses (name@server); --preset xmpp takes them apart",
	foreignGroup:  "ids of group chats (@TGS#…) stand where user ids belong; their type would be 2",
}

// looksForeign tells what a good id may be by mistake.
func looksForeign(id string, user bool) foreign {
	switch id[0] {
	case 'c', 'g':
		if strings.HasPrefix(id, "c2c_") || strings.HasPrefix(id, "group_") {
			return foreignSDK
		}
	case 'C', 'G':
		if strings.HasPrefix(id, "C2C") || strings.HasPrefix(id, "GROUP@") {
			return foreignSDK
		}
	case 's':
		if strings.HasPrefix(id, "si_") || strings.HasPrefix(id, "sg_") {
			return foreignOpenIM
		}
	case '@':
		if user && strings.HasPrefix(id, "@TGS#") {
			return foreignGroup
		}
		return native
	}
	if i := strings.IndexByte(id, '|'); i > 0 && len(id) > i+3 && id[i+2] == '|' {
		return foreignYunxin
	}
	if user && strings.IndexByte(id, '@') > 0 {
		return foreignXMPP
	}
	return native
}
