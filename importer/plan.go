package importer

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A Plan is what a whole input comes to: the jobs that it asks for, and what became of every row. Jobs and rejects may
// be more than memory holds, so they are read from where they were put aside, and the plan has to be closed.
type Plan struct {
	ImportID string    // Config.ImportID, or the first 16 digits of Digest
	Digest   string    // SHA-256 of the content and of the options that change jobs, in 64 hexadecimal digits
	Summary  Summary   //
	Warnings []Warning // about rows that are accepted all the same; by input, then by line; see Summary.Warnings
	Notices  []string  // what else a person should hear once, such as columns that were ignored

	files   []string
	spool   *spool
	runs    []*run // in the order of the hashes
	rejects tape   // by input, then by line

	mu    sync.Mutex
	fault error // see Err
}

// A Summary counts. Rows is always Accepted + Duplicates + Rejected, and Accepted is always Conversations: what was
// accepted is what the jobs hold.
type Summary struct {
	Files         int   // inputs that were read
	Bytes         int64 // of their content, after decompression
	Rows          int64
	Accepted      int64
	Duplicates    int64 // rows that ask for a conversation which an earlier row put into the same group
	Rejected      int64
	Users         int64 // with at least one job
	Jobs          int64
	Conversations int64
	Calls         int64            // that the jobs take when each goes well at once
	RejectCodes   map[string]int64 // rejected rows by code; never nil
	Warnings      int64            // given; Plan.Warnings has the first 1,000 of each kind
	Spooled       int64            // bytes on disk, beside what was held in memory
}

// A Reject is a row that was refused, with its fields as they stood in the input, so that it can be mended. A field
// is cut after 256 bytes. Of a record that could not be read it has the fields that could still be told apart.
type Reject struct {
	File        string // name of the input
	Line        int64  // physical line from 1; that of the record's beginning
	Code        string // the API's code for the same complaint (50002, 51008, 51010, 51011), or parse
	Reason      string // for people; holds no value of the row
	FromAccount string
	GroupName   string
	Type        string
	ToAccount   string
	ToGroupID   string
}

// A Warning is about rows that are accepted and may yet not be what was meant, or not be taken by the API.
type Warning struct {
	Text        string // holds no id
	File        string
	Line        int64  // of the first row that it is about
	FromAccount string // the user, where it is about one; not for logs

	file int
}

// plan settles everything after the last input.
func (in *intake) plan(ctx context.Context) (*Plan, error) {
	digest := hex.EncodeToString(in.digest.Sum(nil))
	p := &Plan{
		ImportID: cmp.Or(in.ImportID, digest[:16]),
		Digest:   digest,
		files:    in.files,
		spool:    in.spool,
		rejects:  in.rejects,
	}
	runs, err := in.settle(ctx)
	if err != nil {
		return nil, err
	}
	var sum counts
	for _, r := range runs {
		sum.add(&r.counts)
		in.findings.add(&r.findings)
		r.findings = findings{}
	}
	p.runs = runs
	s := &in.summary
	s.Duplicates, s.Users, s.Jobs, s.Calls = sum.duplicates, sum.users, sum.jobs, sum.calls
	s.Conversations, s.Accepted = sum.conversations, sum.conversations
	s.Rejected += sum.tooMany + sum.tooManyGroups
	for code, n := range map[string]int64{codeTooManyConversations: sum.tooMany, codeTooManyGroups: sum.tooManyGroups} {
		if n > 0 {
			s.RejectCodes[code] += n
		}
	}
	p.Warnings, s.Warnings = in.warnings()
	p.Notices = append(in.notices, in.ignoredNotices()...)
	s.Spooled = in.spool.size.Load()
	p.Summary = *s
	in.tell(true)
	return p, nil
}

// settle makes the runs of all partitions, side by side.
func (in *intake) settle(ctx context.Context) ([]*run, error) {
	workers := cmp.Or(in.workers, runtime.GOMAXPROCS(0))
	var (
		made  [partitions][]*run
		next  atomic.Int32
		wait  sync.WaitGroup
		fault = make([]error, workers)
	)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for w := range workers {
		wait.Go(func() {
			s := newSettler(in.spool, in.memory/workers, in.ChunkSize)
			for {
				i := int(next.Add(1)) - 1
				if i >= partitions {
					return
				}
				if made[i], fault[w] = s.settle(ctx, &in.parts[i], partitionBits); fault[w] != nil {
					cancel()
					return
				}
				in.parts[i] = tape{}
			}
		})
	}
	wait.Wait()
	// When one fails the others are cancelled: what counts is why the first one failed.
	var cancelled error
	for _, err := range fault {
		switch {
		case errors.Is(err, context.Canceled):
			cancelled = err
		case err != nil:
			return nil, err
		}
	}
	return slices.Concat(made[:]...), cancelled
}

// warnings puts findings into words.
func (in *intake) warnings() (first []Warning, all int64) {
	f := &in.findings
	say := func(at finding, text string) {
		if at.n > 0 {
			f.warn(Warning{Text: fmt.Sprintf("%s: %d", text, at.n), Line: at.line, file: at.file})
		}
	}
	f.trim()
	say(f.spaced, "group names begin or end with white space and are taken as they stand")
	say(f.alike, "groups have a name that differs from another one of the same user in case and spaces only")
	for kind, at := range f.foreign {
		say(at, foreignTexts[kind])
	}
	slices.SortStableFunc(f.warnings, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.Line, b.Line))
	})
	for i := range f.warnings {
		f.warnings[i].File = in.files[f.warnings[i].file]
	}
	return f.warnings, f.warned
}

// Close removes what was put aside. Neither jobs nor rejects can be read after it.
func (p *Plan) Close() error { return p.spool.close() }

// Err tells why a range over Jobs or Rejects ended early, if one did that by itself: what was put aside could not be
// read. It says nothing of a range that is still under way.
func (p *Plan) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

func (p *Plan) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == nil {
		p.fault = err
	}
}

// jobsAhead is how many pieces of jobs, each of about 16 KiB or one job, are made ready while those before are in use.
const jobsAhead = 2

// Jobs goes through the jobs, in an order that depends on the data alone: all first groups of users, then all second
// ones, and so on, each round by a hash of the user. Calls for one user may not overlap, and this keeps them apart. The
// conversations of a job stand in the order of the input. Jobs may be ranged over any number of times, also at once; ask
// Err afterwards.
func (p *Plan) Jobs() iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		ready, stop := make(chan []job.Job, jobsAhead), make(chan struct{})
		var wait sync.WaitGroup
		wait.Go(func() {
			defer close(ready)
			if err := p.prepare(ready, stop); err != nil {
				p.fail(err)
			}
		})
		defer wait.Wait()
		defer close(stop)
		for jobs := range ready {
			for i := range jobs {
				if !yield(jobs[i]) {
					return
				}
			}
		}
	}
}

// prepare reads the jobs. Each run has its jobs of one rank behind each other, so that going through the whole input
// rank by rank takes no sorting, only some reads more.
func (p *Plan) prepare(ready chan<- []job.Job, stop <-chan struct{}) error {
	var buf, b []byte
	for rank := range chat.MaxGroupsPerUser {
		for _, r := range p.runs {
			b = b[:0] // what is left of a piece is the beginning of a job
			for _, e := range r.jobs[r.ranks[rank]:r.ranks[rank+1]] {
				piece, err := p.spool.get(e, buf)
				if err != nil {
					return err
				}
				if e.at >= 0 {
					buf = piece
				}
				b = append(b, piece...)
				jobs, n := p.decodeJobs(b)
				b = append(b[:0], b[n:]...)
				if len(jobs) == 0 {
					continue
				}
				select {
				case ready <- jobs:
				case <-stop:
					return nil
				}
			}
			if len(b) > 0 {
				return p.spool.fault(io.ErrUnexpectedEOF)
			}
		}
	}
	return nil
}

// decodeJobs reads the jobs that b has as a whole, and tells how many bytes they are.
func (p *Plan) decodeJobs(b []byte) (jobs []job.Job, size int) {
	for {
		n, head := binary.Uvarint(b[size:])
		if head <= 0 || uint64(len(b)-size-head) < n {
			break
		}
		size += head + int(n)
	}
	b = b[:size]
	text := string(b) // what the jobs point into
	cut := func(part []byte, from int) string {
		at := len(text) - len(b) + from
		return text[at : at+len(part)]
	}
	for len(b) > 0 {
		_, head := binary.Uvarint(b)
		b = b[head:]
		from := keyUser(b)
		name := b[2+len(from) : 2+len(from)+int(b[1+len(from)])]
		j := job.Job{Import: p.ImportID, FromAccount: cut(from, 1), GroupName: cut(name, 2+len(from))}
		j.ID = job.ID(p.ImportID, j.FromAccount, j.GroupName)
		b = b[2+len(from)+len(name):]
		n, head := binary.Uvarint(b)
		b = b[head:]
		j.Conversations = make([]job.Conversation, n)
		last := -1
		for i := range j.Conversations {
			member, conv, rest := cutMember(b)
			file, line := place(member, conv)
			if file != last { // rows come in the order of the inputs, so a file never comes back
				last = file
				j.Files = append(j.Files, p.files[file])
			}
			j.Conversations[i] = job.Conversation{
				Type: int(member[1] - '0'), ID: cut(member[2:conv], 2), File: len(j.Files) - 1, Line: line,
			}
			b = rest
		}
		jobs = append(jobs, j)
	}
	return jobs, size
}
