package importer

import (
	"io"
	"iter"

	"groupferry/internal/job"
)

// A Plan is what the inputs ask for: the jobs, and what became of every row. Jobs and rejects may be larger than memory,
// so they are read from a spool, and the plan has to be closed.
type Plan struct {
	ImportID string    // Config.ImportID, or the first 16 digits of Digest
	Digest   string    // SHA-256 of the content and of the options that change jobs, in 64 hexadecimal digits
	Content  string    // Digest without the base
	Summary  Summary   //
	Files    []string  // names of the inputs; what job.Conversation.File counts into
	Warnings []Warning // about rows that are accepted all the same; by input, then by line; see Summary.Warnings
	Notices  []string  // what else to report once, such as columns that were ignored
	CutOff   []string  // inputs in CSV whose last line does not end, as if they were cut off
	Changed  []string  // inputs that were changed while they were read

	// With a base:
	Examples  Examples     // some groups of each kind
	Suspended string       // why nothing at all is removed; "" if it is not for rejected rows
	Conflicts []OtherGroup // some of the groups that another sync wrote, too

	spool   *spool
	runs    []*run    // in the order of the hashes
	rejects recordLog // by input, then by line
}

// A Summary counts. Rows is always Accepted + Duplicates + Rejected. Accepted is always Conversations, which is what the
// jobs hold, and what the base of a sync has already.
type Summary struct {
	Files         int   // inputs that were read
	Bytes         int64 // of their content, after decompression
	Rows          int64
	Accepted      int64
	Duplicates    int64 // rows that ask for a conversation which an earlier row put into the same group
	Rejected      int64
	Users         int64            // with at least one accepted row
	Groups        int64            // with at least one accepted row
	NewGroups     int64            // of these: the base has nothing in them
	AddedTo       int64            // of these: the base has something in them, and something is to be added
	Renamed       int64            // of these: they have another name before
	Unchanged     int64            // of these: nothing is to be done
	Jobs          int64            // groups with which something is to be done
	Conversations int64            // of the jobs
	Calls         int64            // that the jobs need if none fails
	RejectCodes   map[string]int64 // rejected rows by code; never nil in a plan
	Warnings      int64            // given; Plan.Warnings has the first 1,000 of each kind
	Spooled       int64            // bytes of the spool on disk; the rest was in memory

	// With [Base.Removals]:
	Known         Extent // of what the base says is there
	Removed       Extent // of what goes: conversations; groups and users of whom nothing remains
	RemovedFrom   int64  // groups that remain, and something of which goes
	Withheld      int64  // conversations that the input has not, and that stay all the same: see [Plan.Suspended]
	WithheldUsers int64  // users with rejected rows, of whom for that reason nothing goes
}

// An Extent is how much something is.
type Extent struct{ Conversations, Groups, Users int64 }

func (e *Extent) add(f Extent) {
	e.Conversations += f.Conversations
	e.Groups += f.Groups
	e.Users += f.Users
}

func (s *Summary) add(t *Summary) {
	s.Rows += t.Rows
	s.Accepted += t.Accepted
	s.Duplicates += t.Duplicates
	s.Users += t.Users
	s.Groups += t.Groups
	s.NewGroups += t.NewGroups
	s.AddedTo += t.AddedTo
	s.Renamed += t.Renamed
	s.Unchanged += t.Unchanged
	s.Known.add(t.Known)
	s.Removed.add(t.Removed)
	s.RemovedFrom += t.RemovedFrom
	s.Withheld += t.Withheld
	s.WithheldUsers += t.WithheldUsers
	s.Jobs += t.Jobs
	s.Conversations += t.Conversations
	s.Calls += t.Calls
	for code, n := range t.RejectCodes {
		s.reject(code, n)
	}
}

// reject counts n rejects.
func (s *Summary) reject(code string, n int64) {
	if s.RejectCodes == nil {
		s.RejectCodes = map[string]int64{}
	}
	s.RejectCodes[code] += n
	s.Rejected += n
}

// Jobs goes through the jobs, in an order that depends on the data alone: all first groups of users, then all second
// ones, and so on, each round by a hash of the user. Calls for one user may not overlap, and this keeps them apart. The
// conversations of a job are in the order of the input. Jobs may be ranged over any number of times, also concurrently.
// An error, which means that the spool cannot be read, ends the sequence.
func (p *Plan) Jobs() iter.Seq2[job.Job, error] {
	return func(yield func(job.Job, error) bool) {
		var buf []byte
		for rank := range maxRanks {
			for _, r := range p.runs {
				if r.jobs[rank].size == 0 {
					continue
				}
				b, err := p.spool.get(r.jobs[rank], &buf)
				if err != nil {
					yield(job.Job{}, err)
					return
				}
				for len(b) > 0 {
					var j job.Job
					j, b = decodeJob(b, p.ImportID)
					if !yield(j, nil) {
						return
					}
				}
			}
		}
	}
}

// Rejects goes through the rejected rows by input, then by line. It may be ranged over any number of times, also
// concurrently. An error, which means that the spool cannot be read, ends the sequence.
func (p *Plan) Rejects() iter.Seq2[Reject, error] {
	logs := []*recordLog{&p.rejects}
	for _, r := range p.runs {
		logs = append(logs, &r.overLimit)
	}
	return mergeRejects(logs, p.Files)
}

// WriteRejects writes the rejects as CSV: the five columns of an input, so that the rows can be fixed and imported as
// they are, and code, reason, file and line, which an import ignores.
func (p *Plan) WriteRejects(w io.Writer) error { return writeRejects(w, p.Rejects()) }

// Close removes what was spooled. Neither jobs nor rejects can be read after it.
func (p *Plan) Close() error { return p.spool.close() }
