package importer

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A Warning is about accepted rows that may not be what was meant, or that the API may reject.
type Warning struct {
	Text        string // contains no id
	File        string
	Line        int64  // of the first row that it is about
	FromAccount string // the user, where it is about one; not for logs

	file int
}

// A position is a place in the inputs.
type position struct {
	file int   // index of the input
	line int64 // physical line from 1
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.file, q.file), cmp.Compare(p.line, q.line))
}

// Findings are about accepted rows that a person should look at. Memory stays bounded: they are a count and the first
// place of each kind, and the first maxWarnings warnings about a single place.
type findings struct {
	kinds    [numFindings]finding
	warnings []Warning
	warned   int64 // in all
}

// maxWarnings is how many warnings about a single place are kept.
const maxWarnings = 1000

type finding struct {
	n     int64
	first position
}

type findingKind int

const (
	spacedName findingKind = iota
	similarName

	// Valid ids that are more likely the conversation ids of another system.
	sdkID
	openIMID
	yunxinID
	xmppID
	groupChatID

	numFindings
	nothingFound findingKind = -1
)

// findingTexts say what was found and what to do about it. A count follows.
var findingTexts = [numFindings]string{
	spacedName:  "group names begin or end with white space and are taken as they stand",
	similarName: "groups have a name that differs from another one of the same user in case and spaces only",
	sdkID:       "ids look like conversation ids of a client SDK (c2c_…, group_…); --preset sdk takes them apart",
	openIMID:    "ids look like OpenIM's conversation ids (si_…, sg_…); --preset openim takes them apart",
	yunxinID:    "ids look like NetEase Yunxin's conversation ids (owner|1|target); --preset yunxin takes them apart",
	xmppID:      "user ids look like XMPP addresses (name@server); --preset xmpp takes them apart",
	groupChatID: "ids of group chats (@TGS#…) stand where user ids belong; their type would be 2",
}

func (f *findings) found(kind findingKind, at position) { f.kinds[kind].add(finding{1, at}) }

func (f *finding) add(g finding) {
	if g.n > 0 && (f.n == 0 || g.first.compare(f.first) < 0) {
		f.first = g.first
	}
	f.n += g.n
}

func (f *findings) warn(w Warning) {
	f.warned++
	f.warnings = append(f.warnings, w)
	if len(f.warnings) >= 2*maxWarnings {
		f.keepFirst()
	}
}

func (f *findings) keepFirst() {
	slices.SortStableFunc(f.warnings, func(a, b Warning) int {
		return cmp.Or(position{a.file, a.Line}.compare(position{b.file, b.Line}), cmp.Compare(a.FromAccount, b.FromAccount))
	})
	f.warnings = f.warnings[:min(len(f.warnings), maxWarnings)]
}

func (f *findings) clone() findings {
	c := *f
	c.warnings = slices.Clone(f.warnings)
	return c
}

func (f *findings) add(g *findings) {
	for kind := range f.kinds {
		f.kinds[kind].add(g.kinds[kind])
	}
	for _, w := range g.warnings {
		f.warn(w)
	}
	f.warned += g.warned - int64(len(g.warnings))
}

// report returns the warnings that are kept, and the number of all. files are the names of the inputs.
func (f *findings) report(files []string) (first []Warning, all int64) {
	f.keepFirst()
	for kind, at := range f.kinds {
		if at.n > 0 {
			f.warnings = append(f.warnings, Warning{
				Text: fmt.Sprintf("%s: %d", findingTexts[kind], at.n), Line: at.first.line, file: at.first.file,
			})
			f.warned++
		}
	}
	slices.SortStableFunc(f.warnings, func(a, b Warning) int {
		return position{a.file, a.Line}.compare(position{b.file, b.Line})
	})
	for i := range f.warnings {
		f.warnings[i].File = files[f.warnings[i].file]
	}
	return f.warnings, f.warned
}

// foreignID detects a valid id that is likely one of another system.
func foreignID(id string, user bool) findingKind {
	switch id[0] {
	case 'c', 'g':
		if strings.HasPrefix(id, "c2c_") || strings.HasPrefix(id, "group_") {
			return sdkID
		}
	case 'C', 'G':
		if strings.HasPrefix(id, "C2C") || strings.HasPrefix(id, "GROUP@") {
			return sdkID
		}
	case 's':
		if strings.HasPrefix(id, "si_") || strings.HasPrefix(id, "sg_") {
			return openIMID
		}
	case '@':
		if user && strings.HasPrefix(id, "@TGS#") {
			return groupChatID
		}
		return nothingFound
	}
	if i := strings.IndexByte(id, '|'); i > 0 && len(id) > i+3 && id[i+2] == '|' {
		return yunxinID
	}
	if user && strings.IndexByte(id, '@') > 0 {
		return xmppID
	}
	return nothingFound
}

// checkGroups looks at the groups of g, whose jobs are laid out in l.
func checkGroups(g *grouper, l *layout, f *findings) {
	for i := range g.groups {
		if g.groups[i].send == 0 {
			continue
		}
		if name := g.keyOf(&g.groups[i]).name(); len(bytes.TrimSpace(name)) != len(name) {
			f.found(spacedName, l.first(uint32(i)))
		}
	}
	seen := map[string]struct{}{}
	for i := range g.users {
		u := &g.users[i]
		if u.rows > chat.MaxConversationsPerGroup {
			checkConversations(g, l, u, f)
		}
		if u.n > 1 {
			clear(seen)
			checkNames(g, l, u, seen, f)
		}
	}
}

// checkConversations warns of a user with more distinct conversations over all groups than some documents allow.
func checkConversations(g *grouper, l *layout, u *user, f *findings) {
	var entries []entry
	for n := range g.groupsOf(u) {
		for b := l.entries(n); len(b) > 0; {
			var e entry
			if e, b = decodeEntry(b); e.op() != job.Remove {
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.position().compare(b.position()) })
	seen := map[string]struct{}{}
	var over position // of the first row that is too many
	for _, e := range entries {
		seen[string(e.id())+strconv.Itoa(e.kind())] = struct{}{}
		if over.line == 0 && len(seen) > chat.MaxConversationsPerGroup {
			over = e.position()
		}
	}
	if over.line == 0 {
		return
	}
	f.warn(Warning{
		Text: fmt.Sprintf("a user has %d distinct conversations over all groups: "+
			"some documents of the API say %d at most, and it may refuse the rest with %s",
			len(seen), chat.MaxConversationsPerGroup, codeTooManyConversations),
		Line: over.line, FromAccount: string(g.nameOf(u)), file: over.file,
	})
}

// checkNames looks for groups of a user whose names differ in nothing but case and spaces. seen is empty.
func checkNames(g *grouper, l *layout, u *user, seen map[string]struct{}, f *findings) {
	for n := range g.groupsOf(u) {
		name := strings.Map(func(c rune) rune {
			if unicode.IsSpace(c) {
				return -1
			}
			return unicode.ToLower(c)
		}, string(g.keyOf(&g.groups[n]).name()))
		if _, again := seen[name]; again && g.groups[n].send > 0 {
			f.found(similarName, l.first(n))
		}
		seen[name] = struct{}{}
	}
}
