package importer

import (
	"context"
	"io"
	"runtime"
	"sync"
)

// A block is a piece of an input on its way from the reader to the spool: some whole records, and what became of them.
//
//	one goroutine      a parser on each core          the caller's goroutine
//
//	input ─► block ─┬─► rows checked, stored ─┬─► in the order of the input: partitions, rejects, counts
//	        block ─┘                         │
//	          ▲                              ▼
//	          └────────── used again ────────┘
type block struct {
	file  int
	line  int64  // physical line at which data begins
	data  []byte // whole records; an empty line stands for each that was taken out
	bad   []badLine
	raw   []byte // of the bad lines, one behind the other
	doubt [][2]int64
	rows  []row // where the reader makes rows itself

	out  outcome
	done chan struct{} // one signal when out is complete
}

// A badLine was taken out of a CSV or JSONL input because it is no record.
type badLine struct {
	line     int64
	from, to int  // of block.raw
	cut      bool // there was more of it
	reason   string
}

// blockBytes is about the size of a block: enough rows that handing it on costs nothing, and so little that the blocks
// at work fit into the caches of a core.
const blockBytes = 128 << 10

// A block that has blockLines is full as well: short lines can all be rejects, and these take more memory.
const blockLines = blockBytes / 16

func (b *block) reset(file int) {
	b.file, b.line = file, 0
	b.data, b.bad, b.raw, b.doubt, b.rows = b.data[:0], b.bad[:0], b.raw[:0], b.doubt[:0], b.rows[:0]
	b.out.reset()
}

// full tells when to hand the block on. Lines that were taken out count too: there may be nothing else.
func (b *block) full() bool {
	return len(b.data)+len(b.raw)+64*len(b.bad) >= blockBytes || len(b.rows) >= blockBytes/64
}

func (b *block) empty() bool { return len(b.data) == 0 && len(b.bad) == 0 && len(b.rows) == 0 }

func (b *block) takeOut(line int64, raw []byte, cut bool, reason string) {
	from := len(b.raw)
	b.raw = append(b.raw, raw...)
	b.bad = append(b.bad, badLine{line, from, len(b.raw), cut, reason})
}

// A reader cuts an input into blocks. The parsers that it makes read them, each in a goroutine of its own.
type reader interface {
	// next adds records to an empty block until it is full or the input ends. The error is that of the input, io.EOF at
	// its end, or an [*Error] without a file; the block counts all the same.
	next(*block) error
	parser() parser
	at() int64 // the physical line that next has come to
}

type parser interface {
	parse(*block, sink)
}

// pump reads an input to its end.
func (in *intake) pump(ctx context.Context, r reader, file int) error {
	workers := in.workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	n := 2 * (workers + 1)
	for len(in.blocks) < n {
		in.blocks = append(in.blocks, &block{done: make(chan struct{}, 1)})
	}
	var (
		free  = make(chan *block, n)
		order = make(chan *block, n)
		work  = make(chan *block, n)
		stop  = make(chan struct{})
		wait  sync.WaitGroup
		rerr  error
	)
	for _, b := range in.blocks[:n] {
		free <- b
	}
	wait.Go(func() {
		defer close(work)
		defer close(order)
		for rerr == nil {
			var b *block
			select {
			case b = <-free:
			case <-stop:
				return
			}
			b.reset(file)
			if rerr = r.next(b); !b.empty() {
				work <- b
				order <- b
			}
		}
	})
	for range workers {
		p := r.parser()
		wait.Go(func() {
			for b := range work {
				b.out.in = &in.options
				p.parse(b, &b.out)
				b.done <- struct{}{}
			}
		})
	}
	var cerr error
	for b := range order {
		<-b.done
		if cerr == nil {
			if cerr = in.collect(&b.out); cerr == nil {
				cerr = ctx.Err()
			}
			if cerr != nil {
				close(stop)
			}
		}
		in.tell(false)
		free <- b
	}
	wait.Wait()
	if cerr != nil {
		return cerr
	}
	if rerr != io.EOF {
		return rerr
	}
	return nil
}
