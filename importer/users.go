package importer

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"iter"
	"strings"

	"groupferry/internal/job"
)

// A PlannedUser is what a plan says of one user.
type PlannedUser struct {
	ID    string
	Jobs  []job.Job // none of a user whom the base alone knows
	Known []Group   // of the base, by group name; see [Plan.Snapshot]
}

// Users goes through the users that the plan has jobs for, or its base knows: each once, by a hash of the user. The order
// depends on the users alone. It holds the jobs of one partition in memory. An error ends the sequence.
func (p *Plan) Users() iter.Seq2[PlannedUser, error] {
	return func(yield func(PlannedUser, error) bool) {
		nextKnown, stop := iter.Pull2(p.Snapshot())
		defer stop()
		known, err, more := nextKnown()
		// knownBefore yields what the base knows of users before this one.
		knownBefore := func(hash uint64, id string, last bool) bool {
			for more && err == nil && (last || compareUsers(hashUser(known.FromAccount), known.FromAccount, hash, id) < 0) {
				u := PlannedUser{ID: known.FromAccount}
				for more && err == nil && known.FromAccount == u.ID {
					u.Known = append(u.Known, known)
					known, err, more = nextKnown()
				}
				if err == nil && !yield(u, nil) {
					return false
				}
			}
			if err != nil {
				yield(PlannedUser{}, err)
			}
			return err == nil
		}
		for u, uerr := range p.usersWithJobs() {
			if uerr != nil {
				yield(u, uerr)
				return
			}
			if !knownBefore(hashUser(u.ID), u.ID, false) {
				return
			}
			for more && err == nil && known.FromAccount == u.ID {
				u.Known = append(u.Known, known)
				known, err, more = nextKnown()
			}
			if !yield(u, nil) {
				return
			}
		}
		knownBefore(0, "", true)
	}
}

func compareUsers(hash1 uint64, id1 string, hash2 uint64, id2 string) int {
	return cmp.Or(cmp.Compare(hash1, hash2), strings.Compare(id1, id2))
}

// usersWithJobs merges the ranks of each run, which are all in the same order.
func (p *Plan) usersWithJobs() iter.Seq2[PlannedUser, error] {
	return func(yield func(PlannedUser, error) bool) {
		var bufs, rest [len(run{}.jobs)][]byte
		for _, r := range p.runs {
			for rank, jobs := range r.jobs {
				rest[rank] = nil
				if jobs.size == 0 {
					continue
				}
				var err error
				if rest[rank], err = p.spool.get(jobs, &bufs[rank]); err != nil {
					yield(PlannedUser{}, err)
					return
				}
			}
			for {
				var first []byte
				var firstHash uint64
				for _, b := range rest {
					if len(b) == 0 {
						continue
					}
					id := firstUser(b)
					if hash := hashUser(id); first == nil || cmp.Or(cmp.Compare(hash, firstHash), bytes.Compare(id, first)) < 0 {
						first, firstHash = id, hash
					}
				}
				if first == nil {
					break
				}
				u := PlannedUser{ID: string(first)}
				for rank, b := range rest {
					for len(b) > 0 && string(firstUser(b)) == u.ID {
						var j job.Job
						j, b = decodeJob(b, p.ImportID)
						u.Jobs = append(u.Jobs, j)
					}
					rest[rank] = b
				}
				if !yield(u, nil) {
					return
				}
			}
		}
	}
}

// ReadUsers makes a plan of users, for [Plan.Users], as Config.UsersOnly does of inputs.
func ReadUsers(ctx context.Context, users iter.Seq2[string, error], cfg Config) (_ *Plan, err error) {
	cfg = Config{UsersOnly: true, SpoolDir: cfg.SpoolDir, Progress: cfg.Progress, memory: cfg.memory, resident: cfg.resident}
	o, err := normalizeConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	spool, err := newSpool(o.SpoolDir, o.resident)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			spool.close() // err matters more
		}
	}()
	p := newPipeline(o, spool)
	var record []byte
	for id, err := range users {
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return nil, err
		}
		p.summary.Rows++
		record = appendSpooledRow(record[:0], &row{field: [numColumns]string{colFrom: id}}, job.OneToOne, "")
		if err := p.partitions[partitionOf(hashUser(id), 0, partitionBits)].add(record); err != nil {
			return nil, err
		}
		p.report(false)
	}
	return p.group(ctx, nil)
}

// A userSplitter cuts a list of user ids into blocks of whole lines.
type userSplitter struct{ *jsonlSplitter }

func newUserSplitter(src io.Reader, buf *buffers) userSplitter {
	return userSplitter{newJSONLSplitter(src, buf, nil)}
}

func (userSplitter) newParser() parser { return userParser{} }

// A userParser takes each line for a user id, but for empty ones, and a first one that names the column.
type userParser struct{}

func (userParser) parse(b *block, out rowHandler) {
	bad := b.bad
	rest := b.data
	for n := b.line; len(rest) > 0; n++ {
		size := lineSize(rest)
		line := bytes.TrimRight(rest[:size], "\r\n")
		rest = rest[size:]
		r := row{position: position{b.file, n}, field: [numColumns]string{colFrom: string(line)}}
		switch {
		case len(bad) > 0 && bad[0].line == n:
			out.reject(&row{position: r.position}, codeParse, bad[0].reason)
			bad = bad[1:]
		case len(line) == 0, n == 1 && canonicalName(r.field[colFrom]) == canonicalName(columnNames[colFrom]):
		default:
			out.row(&r)
		}
	}
}
