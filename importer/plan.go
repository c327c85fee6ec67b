package importer

import (
	"cmp"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"groupferry/internal/chat"
	"groupferry/internal/job"
)

// A Plan is what a whole input comes to: the jobs that it asks for, and what became of every row.
type Plan struct {
	ImportID string    // Config.ImportID, or the first 16 digits of Digest
	Digest   string    // SHA-256 of the content and of the options that change jobs, in 64 hexadecimal digits
	Summary  Summary   //
	Rejects  []Reject  // by input, then by line
	Warnings []Warning // about rows that are accepted all the same; by input, then by line
	Notices  []string  // what else a person should hear once, such as columns that were ignored

	files  []string
	groups *grouping
	order  []uint32 // of the jobs, as indexes of groups
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

	file int // index of the input
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
func (in *intake) plan() *Plan {
	digest := hex.EncodeToString(in.digest.Sum(nil))
	s := &in.summary
	g := in.groups
	g.settle(
		func(*member) { s.Duplicates++ },
		func(m *member, code string) {
			reason := fmt.Sprintf("the group is full: %d conversations at most", chat.MaxConversationsPerGroup)
			if code == codeTooManyGroups {
				reason = fmt.Sprintf("the user has %d groups before this one, %d at most",
					g.groups[m.group].rank, chat.MaxGroupsPerUser)
			}
			in.addReject(int(m.file), m.line, code, reason, g.fields(m))
		})
	p := &Plan{
		ImportID: cmp.Or(in.ImportID, digest[:16]),
		Digest:   digest,
		files:    in.files,
		groups:   g,
		order:    g.jobs(),
	}
	users := make([]bool, len(g.users))
	for _, n := range p.order {
		gr := &g.groups[n]
		s.Jobs++
		s.Conversations += int64(len(gr.members))
		s.Calls += int64((len(gr.members) + in.ChunkSize - 1) / in.ChunkSize)
		if !users[gr.user] {
			users[gr.user] = true
			s.Users++
		}
	}
	s.Accepted = s.Conversations
	in.warnAboutGroups(p.order)

	slices.SortStableFunc(in.rejects, func(a, b Reject) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.Line, b.Line))
	})
	slices.SortStableFunc(in.warnings, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.Line, b.Line))
	})
	p.Rejects, p.Warnings = in.rejects, in.warnings
	p.Notices = append(in.notices, in.ignoredNotices()...)
	p.Summary = *s
	in.tell(true)
	return p
}

// warnAboutGroups looks for what can only be seen once all rows are there.
func (in *intake) warnAboutGroups(order []uint32) {
	g := in.groups
	for _, c := range g.crowded(chat.MaxConversationsPerGroup) {
		in.warn(int(c.over.file), c.over.line, fmt.Sprintf("a user has %d distinct conversations over all groups: "+
			"some documents of the API say %d at most, and it may refuse the rest with %s",
			c.conversations, chat.MaxConversationsPerGroup, codeTooManyConversations))
		in.warnings[len(in.warnings)-1].FromAccount = c.user
	}
	spaced, first := 0, uint32(0)
	for _, n := range order {
		if gr := &g.groups[n]; strings.TrimSpace(gr.name) != gr.name {
			if spaced == 0 || gr.members[0] < first {
				first = gr.members[0]
			}
			spaced++
		}
	}
	if spaced > 0 {
		m := g.rows.at(first)
		in.warn(int(m.file), m.line,
			fmt.Sprintf("group names begin or end with white space and are taken as they stand: %d", spaced))
	}
}

// fields are those of a row that passed its check.
func (g *grouping) fields(m *member) (f [numColumns]string) {
	gr := &g.groups[m.group]
	kind, id := g.conversation(m)
	f[colFrom], f[colGroup], f[colType] = g.users[gr.user].id, gr.name, strconv.Itoa(kind)
	if kind == job.GroupChat {
		f[colChat] = id
	} else {
		f[colUser] = id
	}
	return f
}

// Jobs goes through the jobs, in an order that depends on the data alone: all first groups of users, then all second
// ones, and so on, each round by a hash of the user. Calls for one user may not overlap, and this keeps them apart. The
// conversations of a job stand in the order of the input. Jobs may be ranged over any number of times, also at once.
func (p *Plan) Jobs() iter.Seq[job.Job] {
	return func(yield func(job.Job) bool) {
		for _, n := range p.order {
			if !yield(p.job(&p.groups.groups[n])) {
				return
			}
		}
	}
}

func (p *Plan) job(gr *group) job.Job {
	from := p.groups.users[gr.user].id
	j := job.Job{
		Import:        p.ImportID,
		ID:            job.ID(p.ImportID, from, gr.name),
		FromAccount:   from,
		GroupName:     gr.name,
		Conversations: make([]job.Conversation, len(gr.members)),
	}
	last := -1
	for i, n := range gr.members {
		m := p.groups.rows.at(n)
		if int(m.file) != last { // rows come in the order of the inputs, so a file never comes back
			last = int(m.file)
			j.Files = append(j.Files, p.files[last])
		}
		kind, id := p.groups.conversation(m)
		j.Conversations[i] = job.Conversation{Type: kind, ID: id, File: len(j.Files) - 1, Line: m.line}
	}
	return j
}

// WriteRejects writes the rejects as CSV: our five columns, which can be mended and imported as they are, and code,
// reason, file and line, which an import skips.
func (p *Plan) WriteRejects(w io.Writer) error {
	out := csv.NewWriter(w)
	// An error stays with the writer until it is asked for at the end.
	_ = out.Write(append(columnNames[:], extraColumns...))
	for i := range p.Rejects {
		r := &p.Rejects[i]
		_ = out.Write([]string{r.FromAccount, r.GroupName, r.Type, r.ToAccount, r.ToGroupID,
			r.Code, r.Reason, r.File, strconv.FormatInt(r.Line, 10)})
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("write rejects: %w", err)
	}
	return nil
}
