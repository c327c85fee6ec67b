package importer

import (
	"encoding/binary"
	"slices"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A layout has the jobs of a grouper as they are spooled, in the order of [Plan.Jobs]:
//
//	│ size of the rest │ group key │ rows │ entry │ entry │ … │ size of the rest │ …
//	└──────────────────────── one job ────────────────────────┘
//
// Sizes and counts are uvarints.
type layout struct {
	g    *grouper
	jobs []byte
	ends [chat.MaxGroupsPerUser]int // by rank: the end of its jobs
	next []uint32                   // by group: the end of its entries
	head []byte
}

// layoutBytes is what the layout adds to the key and the entries of a job.
const layoutBytes = 4 + 2*binary.MaxVarintLen32

// layoutJobs replaces what l has by the jobs of g.
func (l *layout) layoutJobs(g *grouper) {
	l.g, l.ends = g, [len(l.ends)]int{}
	l.jobs = slices.Grow(l.jobs[:0], len(g.keys)+len(g.entries)+layoutBytes*len(g.groups))
	l.next = slices.Grow(l.next[:0], len(g.groups))[:len(g.groups)]
	clear(l.next) // groups without a job have no entries
	for _, n := range g.jobOrder() {
		at := &g.groups[n]
		l.head = binary.AppendUvarint(append(l.head[:0], g.keyOf(at)...), uint64(at.send))
		l.jobs = binary.AppendUvarint(l.jobs, uint64(len(l.head))+uint64(at.size))
		l.jobs = append(l.jobs, l.head...)
		l.next[n] = uint32(len(l.jobs))
		l.jobs = l.jobs[:len(l.jobs)+int(at.size)]
		l.ends[at.rank] = len(l.jobs)
	}
	for rank := 1; rank < len(l.ends); rank++ {
		l.ends[rank] = max(l.ends[rank], l.ends[rank-1])
	}
	// One pass over the rows in the order of the input: going job by job would miss the cache at every row.
	for i := range g.rows {
		r := &g.rows[i]
		if r.state != toSend {
			continue
		}
		at := l.next[r.group]
		l.next[r.group] += uint32(copy(l.jobs[at:], g.entryOf(r).bytes))
		if g.attempted != nil && g.attempted(g.rowOf(r)) {
			l.jobs[at+1] |= againBit
		}
	}
}

// rank returns the jobs of a rank.
func (l *layout) rank(n int) []byte {
	from := 0
	if n > 0 {
		from = l.ends[n-1]
	}
	return l.jobs[from:l.ends[n]]
}

// entries returns those of a group, in the order of the input.
func (l *layout) entries(n uint32) []byte { return l.jobs[l.next[n]-l.g.groups[n].size : l.next[n]] }

// first returns the position of the first row of a group.
func (l *layout) first(n uint32) position {
	e, _ := decodeEntry(l.entries(n))
	return e.position()
}

// firstUser returns the user of the first job of b, in the memory of b.
func firstUser(b []byte) []byte {
	_, n := binary.Uvarint(b)
	return groupKey(b[n:]).user()
}

// decodeJob decodes the first job of b.
func decodeJob(b []byte, importID string) (j job.Job, rest []byte) {
	size, n := binary.Uvarint(b)
	b, rest = b[n:][:size], b[n:][size:]
	text := string(b) // one allocation for all strings of the job
	cut := func(part []byte, rest []byte) string {
		end := len(text) - len(rest)
		return text[end-len(part) : end]
	}
	key, b := decodeGroupKey(b)
	j = job.Job{Import: importID, FromAccount: text[1:][:len(key.user())], GroupName: cut(key.name(), b)}
	j.ID = job.ID(importID, j.FromAccount, j.GroupName)
	rows, n := binary.Uvarint(b)
	b = b[n:]
	j.Conversations = make([]job.Conversation, rows)
	for i := range j.Conversations {
		var e entry
		e, b = decodeEntry(b)
		at := e.position()
		bytes := cut(e.bytes, b)
		j.Conversations[i] = job.Conversation{
			Type: e.kind(), ID: bytes[2:e.conv], File: at.file, Line: at.line, Again: e.again(),
		}
	}
	return j, rest
}
