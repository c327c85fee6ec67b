package importer

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
)

// A partition has the rows of the users whose hashes begin with the same bits, in the order of the input.
type partition struct {
	rows recordLog
	base *recordLog // what a sync knows of these users, in the order in which it came to know; nil without a base
	bits int        // how many
}

const (
	// partitionBits of the hash choose the partition of a user. A partition of 100 million rows fits into half of
	// groupBytes.
	partitionBits = 9
	partitions    = 1 << partitionBits

	// The next splitBits choose the part if a partition is too large.
	splitBits = 4
)

// hashUser is 64-bit FNV-1a and the finalizer of MurmurHash3, because FNV hashes of ids that differ in their last digits
// only are close together. The order of jobs depends on it: see [Plan.Jobs].
func hashUser[T string | []byte](id T) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}

// partitionOf chooses among 1<<n partitions by n bits of the hash, after the first bits of it.
func partitionOf(hash uint64, bits, n int) int { return int(hash << bits >> (64 - n)) }

// A run is what a partition becomes: the jobs of its users, and their rows over a limit.
type run struct {
	jobs      [maxRanks]segment // by the rank of the job among those of its user
	overLimit recordLog         // rejects, in the order of the input
	base      recordLog         // what a sync knows of these users: see foldBase
}

// A partitionGrouper makes runs of partitions, one after the other, and reuses its memory.
type partitionGrouper struct {
	spool     *spool
	budget    int // bytes that the rows of a partition may take
	chunkSize int // conversations in a call

	grouper *grouper
	layout  layout
	buf     []byte // for reading

	// With a base:
	fold      *grouper // limitless
	base      *Base
	withheld  *withheld // whose removals are
	examples  *examples
	conflicts *smallest // keys of groups that are also another sync's, with its name

	read     atomic.Int64 // bytes of partitions; those of their parts do not count
	summary  Summary      // of all partitions
	findings findings
}

func newPartitionGrouper(s *spool, budget, chunkSize int) *partitionGrouper {
	return &partitionGrouper{spool: s, budget: budget, chunkSize: chunkSize, grouper: newGrouper()}
}

// onBase readies g for partitions with a base.
func (g *partitionGrouper) onBase(base *Base, w *withheld) {
	g.fold, g.base, g.withheld = newGrouper(), base, w
	g.examples, g.conflicts = newExamples(), newSmallest(maxExamples)
	g.fold.limitless, g.grouper.all = true, base.All
	g.grouper.again = func(r spooledRow) bool {
		group, ok := g.fold.lookUp(r.group)
		if !ok {
			return false
		}
		n, _, ok := g.fold.findRow(group, r.entry.conversation())
		return ok && (g.fold.rows[n].state == refused || g.fold.rows[n].state == unsure)
	}
}

// group makes a run of a partition. If the accepted rows exceed the budget, it returns parts instead: they have the rows
// accepted so far, then the rest of the partition. The run then only has the rows that were over a limit until then.
func (g *partitionGrouper) group(ctx context.Context, p partition) (r *run, parts []partition, err error) {
	if p.base != nil {
		return g.groupOnBase(ctx, p)
	}
	g.grouper.reset()
	r = &run{overLimit: recordLog{spool: g.spool}}
	reader := logReader{log: &p.rows, buf: g.buf}
	defer func() { g.buf = reader.buf }()
	for {
		records, err := reader.next()
		if err == io.EOF {
			break
		} else if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, nil, err
		}
		if p.bits == partitionBits {
			g.read.Add(int64(len(records)))
		}
		for len(records) > 0 {
			var row spooledRow
			row, records = decodeSpooledRow(records)
			if parts != nil {
				err = addToPart(parts, row)
			} else {
				err = g.add(row, r)
			}
			if err != nil {
				return nil, nil, err
			}
		}
		if parts == nil && g.grouper.used() > g.budget && len(g.grouper.users) > 1 && p.bits+splitBits <= 64 {
			if parts, err = g.split(p.bits + splitBits); err != nil {
				return nil, nil, err
			}
		}
	}
	r.overLimit.tail = bytes.Clone(r.overLimit.tail) // it is kept for as long as the plan
	if parts == nil {
		err = g.finish(r)
	}
	return r, parts, err
}

// add adds the next row, or rejects it if it is over a limit.
func (g *partitionGrouper) add(row spooledRow, r *run) error {
	switch v := g.grouper.add(row); v {
	case tooManyConversations, tooManyGroups:
		g.summary.reject(limitReasons[v].code, 1)
		return r.overLimit.add([]byte{byte(v)}, row.group, row.entry.bytes)
	case duplicate:
		g.summary.Duplicates++
	}
	return nil
}

// split starts the parts of a partition with the rows accepted so far, in the order of the input.
func (g *partitionGrouper) split(bits int) ([]partition, error) {
	parts := make([]partition, 1<<splitBits)
	for i := range parts {
		parts[i] = partition{rows: recordLog{spool: g.spool}, bits: bits}
	}
	for i := range g.grouper.rows {
		if err := addToPart(parts, g.grouper.rowOf(&g.grouper.rows[i])); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

func addToPart(parts []partition, row spooledRow) error {
	part := &parts[partitionOf(hashUser(row.group.user()), parts[0].bits-splitBits, splitBits)]
	return part.rows.add(row.group, row.entry.bytes)
}

// finish spools the jobs and counts.
func (g *partitionGrouper) finish(r *run) (err error) {
	g.layout.layoutJobs(g.grouper)
	for rank := range r.jobs {
		if jobs := g.layout.rank(rank); len(jobs) > 0 {
			if r.jobs[rank], err = g.spool.put(jobs); err != nil {
				return err
			}
		}
	}
	s := &g.summary
	for i := range g.grouper.groups {
		at := &g.grouper.groups[i]
		s.Accepted += int64(at.wanted)
		s.Conversations += int64(at.send)
		s.Calls += g.calls(at)
		if at.hasJob() {
			s.Jobs++
		}
		if at.wanted == 0 {
			continue
		}
		s.Groups++
		key := g.grouper.keyOf(at)
		if at.was != nil {
			s.Renamed++
			g.examples.add(exampleRename, key)
		}
		switch {
		case at.known == 0 && at.was == nil:
			s.NewGroups++
			g.examples.add(exampleCreate, key)
		case at.send > 0:
			s.AddedTo++
			g.examples.add(exampleAdd, key)
		case !at.hasJob():
			s.Unchanged++
			g.examples.add(exampleUnchanged, key)
		}
	}
	for i := range g.grouper.users {
		for n := range g.grouper.groupsOf(&g.grouper.users[i]) {
			if g.grouper.groups[n].wanted > 0 {
				s.Users++
				break
			}
		}
	}
	checkGroups(g.grouper, &g.layout, &g.findings)
	return nil
}

// calls is how many writes the job of a group takes, if none fails.
func (g *partitionGrouper) calls(at *group) (n int64) {
	if at.deleted {
		return 1
	}
	if at.was != nil {
		n++
	}
	return n + int64((int(at.send+at.removes)+g.chunkSize-1)/g.chunkSize)
}
