package importer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Read reads and checks all inputs: names of files, globs, and "-" for standard input, in the order given, the
// matches of a glob in the order of their names. An input that is named twice is read once.
//
// The error is a [*ConfigError] if cfg or inputs are not valid, the error of ctx if that ended, and else an [*Error] for
// the first input that cannot be read at all: no such file, an archive that is cut off, no header, UTF-16 and the like.
// Invalid rows are no error but rejects of the plan.
func Read(ctx context.Context, inputs []string, cfg Config) (*Plan, error) {
	rows, err := ReadRows(ctx, inputs, cfg)
	if err != nil {
		return nil, err
	}
	plan, err := rows.Plan(ctx, nil)
	if err != nil {
		rows.Close() // err matters more
		return nil, err
	}
	return plan, nil
}

// Rows are the valid rows of all inputs, spooled. They have to be closed.
type Rows struct{ p *pipeline }

// ReadRows is the first half of [Read], with the same errors: it reads and checks the inputs.
func ReadRows(ctx context.Context, inputs []string, cfg Config) (*Rows, error) {
	o, err := normalizeConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	spool, err := newSpool(o.SpoolDir, o.resident)
	if err != nil {
		return nil, err
	}
	p := newPipeline(o, spool)
	if err := p.readAll(ctx, inputs); err != nil {
		spool.close() // err matters more
		return nil, err
	}
	return &Rows{p}, nil
}

// Plan is the second half of [Read]: it groups the rows, against what a sync knows if base is not nil. It may be called
// again, with another base. The plans share what is spooled: closing one of them, or the rows, closes all.
func (r *Rows) Plan(ctx context.Context, base *Base) (*Plan, error) { return r.p.group(ctx, base) }

// Content is [Plan.Content], which is the same for each plan.
func (r *Rows) Content() string { return hex.EncodeToString(r.p.digest.Sum(nil)) }

// Close removes what was spooled.
func (r *Rows) Close() error { return r.p.spool.close() }

// A pipeline passes the rows of all inputs through the stages.
type pipeline struct {
	options
	validator validator
	blocks    []*block // reused
	buffers   buffers

	// what was found so far, in the order of the inputs
	files      []string // names of the inputs
	digest     hash.Hash
	spool      *spool
	partitions [partitions]recordLog // valid rows
	rejects    recordLog
	summary    Summary
	findings   findings
	ignored    ignoredColumns
	notices    []string
	cutOff     []string // see Plan
	changed    []string

	read     atomic.Int64 // bytes, before decompression
	total    int64        // see Progress
	sorted   func() int   // in percent; nil until all is read
	reported time.Time    // when Config.Progress was last called
}

func newPipeline(o options, s *spool) *pipeline {
	p := &pipeline{
		options:   o,
		validator: validator{o.Owner, o.preset.translate, o.ids, o.UsersOnly},
		digest:    sha256.New(),
		spool:     s,
		rejects:   recordLog{spool: s},
		summary:   Summary{RejectCodes: map[string]int64{}},
	}
	for i := range p.partitions {
		p.partitions[i].spool = s
	}
	for range 2 * (o.workers + 1) {
		p.blocks = append(p.blocks, &block{
			result: blockResult{validator: &p.validator}, done: make(chan struct{}, 1),
		})
	}
	// The number changes if the same rows ever become other jobs, so that an old import is not taken for the new one.
	io.WriteString(p.digest, "groupferry import 1\n")
	return p
}

func (p *pipeline) readAll(ctx context.Context, inputs []string) error {
	sources, notices, err := expandSources(inputs, p.Stdin)
	if err != nil {
		return err
	}
	p.notices = notices
	for _, s := range sources {
		if p.total += s.size; s.size < 0 {
			p.total = 0
			break
		}
	}
	for _, s := range sources {
		if err := p.readSource(ctx, s); err != nil {
			return err
		}
	}
	p.blocks, p.buffers = nil, buffers{}
	return nil
}

// group makes a plan of what was read.
func (p *pipeline) group(ctx context.Context, base *Base) (*Plan, error) {
	g := &grouping{pipeline: p, base: base, summary: p.summary, findings: p.findings.clone()}
	if base != nil {
		var err error
		if g.known, err = spoolBase(ctx, p.spool, base); err == nil {
			g.withheld, err = p.findWithheld(ctx, base)
		}
		if err != nil {
			return nil, err
		}
	}
	g.summary.RejectCodes = maps.Clone(p.summary.RejectCodes)
	runs, err := g.groupAll(ctx)
	if err != nil {
		return nil, err
	}
	return g.plan(runs), nil
}

// A grouping is what one plan adds to what was read.
type grouping struct {
	*pipeline
	base     *Base                  // nil: not a sync
	known    *[partitions]recordLog // what the base has, spooled
	withheld *withheld
	examples Examples
	conflict []OtherGroup
	summary  Summary
	findings findings
}

// partition returns the i-th partition. Without a base it is read only once.
func (g *grouping) partition(i int) partition {
	p := partition{rows: g.partitions[i], bits: partitionBits}
	if g.known != nil {
		p.base = &g.known[i]
	}
	return p
}

// readSource passes one input to the spool.
func (p *pipeline) readSource(ctx context.Context, s source) error {
	c, err := s.open(ctx, p.Stdin, &p.read, &p.buffers)
	if err != nil {
		return err
	}
	defer c.close()
	file := len(p.files)
	p.files = append(p.files, s.name)

	format := p.Format
	switch {
	case p.preset.documents:
		format = formatDocuments
	case format == FormatAuto:
		if err := checkDocument(c.head); err != nil {
			return c.explain(ctx, 0, err)
		}
		format = detectFormat(s.name, c.head)
		if p.UsersOnly && format == FormatCSV && isUserList(c.head, p.Delimiter) {
			format = FormatUsers
		}
	}
	if len(c.head) == 0 {
		// A JSONL export of nothing is an empty file. A CSV export of nothing still has its header: without one it is
		// more likely an export that broke, not one without groups.
		if format == FormatCSV {
			return &Error{File: s.name, Problem: "is empty", Hint: "a CSV file begins with a header", Err: ErrEmpty}
		}
		p.notices = append(p.notices, s.name+" is empty")
	}
	var split splitter
	switch format {
	case FormatCSV:
		records, err := newCSVSplitter(c, &p.buffers, p.Delimiter, p.columns)
		if err != nil {
			return c.explain(ctx, records.at(), err)
		}
		for _, name := range records.head.ignored() {
			p.ignored.add(file, cutText(name))
		}
		split = records
	case formatDocuments:
		split = newDocuments(c, p.Preset)
	case FormatUsers:
		split = newUserSplitter(c, &p.buffers)
	default:
		split = newJSONLSplitter(c, &p.buffers, p.columns)
	}
	if err := p.pump(ctx, split, file); err != nil {
		return c.explain(ctx, split.at(), err)
	}
	if records, ok := split.(*csvSplitter); ok && records.open {
		// JSON that is cut off is no JSON, but half of an id is an id.
		p.notices = append(p.notices,
			s.name+": the last line has no line end; if the file was cut off there, its last row is not what it should be")
		p.cutOff = append(p.cutOff, s.name)
	}
	if c.changed() {
		p.notices = append(p.notices, s.name+": the file was changed while it was read; some of its rows may be of before, some of after")
		p.changed = append(p.changed, s.name)
	}
	p.summary.Files++
	p.summary.Bytes += c.digest.n
	fmt.Fprintf(p.digest, "input %s\n%x\n", p.jobOptions(format), c.digest.sum.Sum(nil))
	return nil
}

// pump passes the records of an input to the spool, block by block.
func (p *pipeline) pump(ctx context.Context, split splitter, file int) error {
	n := len(p.blocks)
	var (
		free     = make(chan *block, n)
		order    = make(chan *block, n)
		work     = make(chan *block, n)
		stop     = make(chan struct{})
		wait     sync.WaitGroup
		splitErr error
	)
	for _, b := range p.blocks {
		free <- b
	}
	wait.Go(func() {
		defer close(work)
		defer close(order)
		for splitErr == nil {
			var b *block
			select {
			case b = <-free:
			case <-stop:
				return
			}
			b.reset(file)
			if splitErr = split.next(b); !b.empty() {
				work <- b
				order <- b
			}
		}
	})
	for range p.workers {
		parser := split.newParser()
		wait.Go(func() {
			for b := range work {
				parser.parse(b, &b.result)
				b.done <- struct{}{}
			}
		})
	}
	var err error
	for b := range order {
		<-b.done
		if err == nil {
			if err = cmp.Or(p.collect(file, &b.result), ctx.Err()); err != nil {
				close(stop)
			}
		}
		p.report(false)
		free <- b
	}
	wait.Wait()
	if err == nil && splitErr != io.EOF {
		err = splitErr
	}
	return err
}

// collect adds the result of a block. Blocks come in the order of the input.
func (p *pipeline) collect(file int, o *blockResult) error {
	if o.refused != nil {
		return o.refused
	}
	from := int32(0)
	for _, r := range o.ends {
		log := &p.rejects
		if r.partition != rejected {
			log = &p.partitions[r.partition]
		}
		if err := log.add(o.records[from:r.end]); err != nil {
			return err
		}
		from = r.end
	}
	p.summary.add(&o.summary)
	p.findings.add(&o.findings)
	for _, name := range o.ignored {
		p.ignored.add(file, name)
	}
	return nil
}

// groupAll makes the runs of all partitions, concurrently. They are in the order of the hashes.
func (p *grouping) groupAll(ctx context.Context) ([]*run, error) {
	var (
		runs [partitions][]*run
		next atomic.Int32
		wait sync.WaitGroup
		each = make([]*partitionGrouper, p.workers)
		size int64
	)
	for i := range p.partitions {
		size += p.partitions[i].size()
	}
	inner, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for w := range p.workers {
		g := newPartitionGrouper(p.spool, p.memory/p.workers, p.ChunkSize)
		if p.base != nil {
			g.onBase(p.base, p.withheld)
		}
		each[w] = g
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < partitions; i = int(next.Add(1)) - 1 {
				// The parts of a partition take its place.
				for todo := []partition{p.partition(i)}; len(todo) > 0; {
					r, parts, err := g.group(inner, todo[0])
					if err != nil {
						fail(err)
						return
					}
					runs[i] = append(runs[i], r)
					todo = append(parts, todo[1:]...)
				}
				if p.base == nil {
					p.partitions[i] = recordLog{} // it is not read again
				}
			}
		})
	}
	p.sorted = func() int {
		var n int64
		for _, g := range each {
			n += g.read.Load()
		}
		return int(n * 100 / max(size, 1))
	}
	p.awaitWith(&wait)
	// The first worker that fails stops the others.
	if err := cmp.Or(ctx.Err(), context.Cause(inner)); err != nil {
		return nil, err
	}
	found, conflicts := newExamples(), newSmallest(maxExamples)
	for _, g := range each {
		p.summary.add(&g.summary)
		p.findings.add(&g.findings)
		if p.base != nil {
			found.addAll(g.examples)
			conflicts.addAll(g.conflicts)
		}
	}
	p.examples, p.conflict = found.all(), otherGroups(conflicts)
	return slices.Concat(runs[:]...), nil
}

// plan returns what was found.
func (p *grouping) plan(runs []*run) *Plan {
	sum := p.digest.Sum(nil)
	content := hex.EncodeToString(sum)
	if p.base != nil {
		// Nights with the same content are one import where they start from the same, and else are not.
		d := sha256.New()
		fmt.Fprintf(d, "sync %s\ngeneration %d\nall %t\nremovals %d\nclear %t\n%x\n",
			p.base.Name, p.base.Generation, p.base.All, p.base.Removals, p.base.Clear, sum)
		sum = d.Sum(nil)
	}
	digest := hex.EncodeToString(sum)
	plan := &Plan{
		ImportID: cmp.Or(p.ImportID, digest[:16]),
		Digest:   digest,
		Content:  content,
		Summary:  p.summary,
		Files:    p.files,
		Notices:  slices.Concat(p.notices, p.ignored.notices(p.files)),
		CutOff:   p.cutOff,
		Changed:  p.changed,
		spool:    p.spool,
		runs:     runs,
		rejects:  p.rejects,

		Examples: p.examples, Conflicts: p.conflict,
	}
	if p.withheld != nil {
		plan.Suspended = p.withheld.suspended
	}
	plan.Warnings, plan.Summary.Warnings = p.findings.report(p.files)
	plan.Summary.Spooled = p.spool.onDisk()
	p.report(true)
	return plan
}

// awaitWith waits for goroutines, and reports progress meanwhile.
func (p *pipeline) awaitWith(wait *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		wait.Wait()
		close(done)
	}()
	tick := time.NewTicker(p.progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			p.report(false)
		}
	}
}

// report reports progress, unless it did so just before.
func (p *pipeline) report(last bool) {
	if p.Progress == nil {
		return
	}
	now := time.Now()
	if !last && now.Sub(p.reported) < p.progressEvery {
		return
	}
	p.reported = now
	at := Progress{Rows: p.summary.Rows, Bytes: p.read.Load(), Total: p.total, Sorting: p.sorted != nil}
	if at.Sorting {
		at.Sorted = p.sorted()
	}
	p.Progress(at)
}
