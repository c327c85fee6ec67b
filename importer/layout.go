package importer

import (
	"encoding/binary"
	"slices"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A layout has the jobs of a grouper as they are spooled, in the order of [Plan.Jobs]:
//
//	│ size of the rest │ group key │ deleted │ size, old name │ rows │ entry │ entry │ … │ size of the rest │ …
//	└───────────────────────────────────── one job ───────────────────────────────────────┘
//
// Sizes and counts are uvarints, deleted and the size of the old name, which is 0 if there is none, a byte each.
type layout struct {
	g    *grouper
	jobs []byte
	ends [maxRanks]int // by rank: the end of its jobs
	next []uint32      // by group: the end of its entries
	head []byte
}

// layoutBytes is what the layout adds to the key and the entries of a job.
const layoutBytes = 6 + 2*binary.MaxVarintLen32

// maxRanks is how many jobs of a user a plan keeps apart: all groups deleted, and as many new ones. More there are only where
// it is not known of many groups whether they exist; those come last, together.
const maxRanks = 2 * chat.MaxGroupsPerUser

// layoutJobs replaces what l has by the jobs of g.
func (l *layout) layoutJobs(g *grouper) {
	l.g, l.ends = g, [len(l.ends)]int{}
	l.jobs = slices.Grow(l.jobs[:0], len(g.keys)+len(g.entries)+layoutBytes*len(g.groups))
	l.next = slices.Grow(l.next[:0], len(g.groups))[:len(g.groups)]
	clear(l.next) // groups without a job have no entries
	order, ranks := g.jobOrder()
	for _, n := range order {
		at := &g.groups[n]
		deleted := byte(0)
		if at.deleted {
			deleted = 1
		}
		l.head = append(append(l.head[:0], g.keyOf(at)...), deleted)
		if at.was == nil {
			l.head = append(l.head, 0)
		} else {
			l.head = append(append(l.head, byte(len(at.was.name()))), at.was.name()...)
		}
		keeps, _ := at.keeps()
		l.head = binary.AppendUvarint(l.head, uint64(at.send+at.removes+keeps))
		size := entriesSize(at)
		l.jobs = binary.AppendUvarint(l.jobs, uint64(len(l.head)+size))
		l.jobs = append(l.jobs, l.head...)
		l.next[n] = uint32(len(l.jobs))
		l.jobs = slices.Grow(l.jobs, size)[:len(l.jobs)+size]
		l.ends[min(ranks[n], maxRanks-1)] = len(l.jobs)
	}
	for rank := 1; rank < len(l.ends); rank++ {
		l.ends[rank] = max(l.ends[rank], l.ends[rank-1])
	}
	// One pass over the rows in the order of the input: going job by job would miss the cache at every row.
	for i := range g.rows {
		r := &g.rows[i]
		bit := byte(0)
		switch r.state {
		case toSend:
			if g.again != nil && g.again(g.rowOf(r)) {
				bit = againBit
			}
		case toRemove:
			bit = removeBit
		default:
			if keeps, _ := g.groups[r.group].keeps(); keeps == 0 || r.state != unchanged {
				continue
			}
			bit = keepBit
		}
		at := l.next[r.group]
		l.next[r.group] += uint32(copy(l.jobs[at:], g.entryOf(r).bytes))
		l.jobs[at+1] |= bit
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

// entriesSize is that of the entries of a group's job in bytes.
func entriesSize(at *group) int {
	_, kept := at.keeps()
	return int(at.size + kept)
}

// entries returns those of a group: what is there, the rest in the order of the input, what is removed.
func (l *layout) entries(n uint32) []byte {
	return l.jobs[int(l.next[n])-entriesSize(&l.g.groups[n]) : l.next[n]]
}

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
	j.Delete = b[0] == 1
	old := b[2:][:b[1]]
	b = b[2+len(old):]
	j.OldName = cut(old, b)
	rows, n := binary.Uvarint(b)
	b = b[n:]
	j.Conversations = make([]job.Conversation, rows)
	for i := range j.Conversations {
		var e entry
		e, b = decodeEntry(b)
		at := e.position()
		bytes := cut(e.bytes, b)
		j.Conversations[i] = job.Conversation{
			Type: e.kind(), ID: bytes[2:e.conv], Op: e.op(), File: at.file, Line: at.line, Again: e.again(),
		}
	}
	return j, rest
}
