package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/job"
	"groupferry/internal/page"
	"groupferry/internal/queue"
	"groupferry/internal/redact"
	"groupferry/worker"
)

// actionWait is how long a browser waits for the end of an action, which then continues without it: longer than a request to NATS
// may take, so that it gets the error of one, and shorter than what the server gives a response.
const actionWait = 7 * time.Second

// actions are what the buttons of a page do while there is a namespace to do it to.
type actions struct {
	mu      sync.Mutex
	do      func(context.Context, page.Action) page.Answer // nil: not now
	ctx     context.Context
	running sync.WaitGroup
}

// Control has the buttons of the page call do, which may be called at once by many, until stop is called. That ends its context,
// and waits for what is under way.
func (m *Monitor) Control(ctx context.Context, do func(context.Context, page.Action) page.Answer) (stop func()) {
	if m == nil {
		return func() {}
	}
	a := &m.actions
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.do, a.ctx = do, ctx
	return func() {
		a.mu.Lock()
		a.do = nil
		a.mu.Unlock()
		cancel()
		a.running.Wait()
	}
}

// begin begins an action; nil says that it cannot be done now.
func (a *actions) begin(wanted page.Action) <-chan page.Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.do == nil {
		return nil
	}
	do, ctx, done := a.do, a.ctx, make(chan page.Answer, 1)
	a.running.Go(func() { done <- do(ctx, wanted) })
	return done
}

func (a *actions) act(wanted page.Action) page.Answer {
	done := a.begin(wanted)
	if done == nil {
		return page.Answer{Text: "not now: the process starts, waits for NATS, or ends", Hint: "try again in a moment"}
	}
	select {
	case answer := <-done:
		return answer
	case <-time.After(actionWait):
		return page.Answer{OK: true, Text: wanted.Name + " takes longer, and continues; the page shows how far it is"}
	}
}

// page is the state as people see it. It holds no ID of a user: of a failure it has the code alone, for the API's text may name
// one.
func (m *Monitor) page() page.Snapshot {
	p, s, _ := m.state()
	last := m.last.Load()
	if last != nil {
		s = *last
	}
	n := page.Snapshot{Codes: map[string]page.Code{}, Live: []page.Import{}, Over: []page.Import{}, Calls: callsOf(&s)}
	n.Process = page.Process{
		Version: m.version, Leads: s.Leading && !s.Lapsed, Leader: s.Leader, Standbys: []string{}, Rate: s.Rate, RateNote: rateNote(&s),
	}
	if m.ended.Load() && last == nil {
		n.Process.State, n.Process.Headline, n.Process.Detail = "stopped", "Ended", "The process has ended before it did any job."
		return n
	}
	if p == nil {
		m.beforeProcess(&n.Process, &s)
		return n
	}
	n.Process.Host = p.cfg.Engine.Host
	command := p.cfg.Engine.Namespace.Conn.Command
	describe(&n.Process, &s, command)
	for _, host := range append(slices.Clone(s.Others), n.Process.Host) {
		if host != s.Leader {
			n.Process.Standbys = append(n.Process.Standbys, host)
		}
	}
	slices.Sort(n.Process.Standbys)
	importsOnPage(&n, &s)
	if last != nil {
		p.describeEnd(&n, &s)
	}
	for _, text := range []*string{&n.Process.Headline, &n.Process.Detail, &n.Process.Command} {
		*text = onPage(*text)
	}
	for _, all := range [][]page.Import{n.Live, n.Over} {
		for _, i := range all {
			for code := range i.Codes {
				if _, known := n.Codes[code]; !known {
					n.Codes[code] = codeOnPage(code)
				}
			}
		}
	}
	return n
}

// beforeProcess says what is done before there is a process.
func (m *Monitor) beforeProcess(n *page.Process, s *State) {
	switch {
	case s.Reason == NoNATS:
		n.State, n.Headline = "leaderless", "Waiting for NATS"
		n.Detail = "The NATS server is out of reach. It is tried again and again; nothing is lost."
		n.Remedy = "see that the server runs, and that this host reaches it"
	case m.ReadsInput:
		n.State, n.Headline = "starting", "Reading the input"
		n.Detail = "Nothing is sent before the whole input was read and checked."
	default:
		n.State, n.Headline, n.Detail = "starting", "Starting", "Connecting to NATS."
	}
}

// describe says what a process does, and why nothing else.
func describe(n *page.Process, s *State, command func(words ...string) string) {
	n.State = s.Mode
	n.CanPause = s.Halt == nil && s.Connected
	n.CanGo = s.Halt != nil && s.Connected
	if h := s.Halt; h != nil {
		n.Since, n.Command, n.Remedy = millis(h.Since), cmp.Or(h.Command, command("resume")), h.Remedy
	}
	switch s.Mode + " " + s.Reason {
	case Running + " " + Working:
		n.Headline = "Running"
		for _, l := range s.Commands {
			n.Slowed = n.Slowed || l.Effective < l.Limit*0.99
		}
		if n.Slowed {
			n.Detail = "The API throttles calls: they are slowed down, and speed up again by themselves."
		}
	case Running + " " + Idle:
		n.State, n.Headline, n.Detail = "idle", "Idle", "No job waits."
	case Running + " " + AllPaused:
		n.State, n.Headline, n.Detail = "paused", "Paused", "A person paused the imports that have jobs; others would run."
		n.Command = command("resume", pausedImport(s))
	case Running + " " + Starting:
		n.State, n.Headline, n.Detail = "starting", "Starting", "It leads, and proves its credentials with one call."
	case Standby + " " + OtherLeads:
		n.Headline, n.Detail = "Standing by", s.Leader+" leads and makes the calls. This process takes over when that one is gone."
	case Leaderless + " " + Election:
		n.Headline, n.Detail = "No leader yet", "One of the processes takes the lead in about 3 s."
	case Leaderless + " " + NoNATS:
		n.Headline, n.Detail = "NATS is out of reach", "No call is made until it is back; nothing is lost. It is tried again and again."
		n.Remedy = "see that the server runs, and that this host reaches it"
	case Paused + " " + ByHand:
		n.Headline, n.Detail = "Paused", "Paused by hand on "+s.Halt.By+". No call is made, and jobs stay on the queue."
	case OutOfReach + " " + NoAPI:
		n.Headline, n.Since = "The API is out of reach", millis(s.Outage.Since)
		n.Detail = "One call at a time tries it; no job is lost, and it continues by itself."
		if text := outageText(s.Outage.Err); text != "" {
			n.Detail = "The last call: " + text + ". " + n.Detail
		}
		n.Remedy = "see that this host reaches the API: network, DNS, proxy, firewall"
	default:
		if s.Mode == Halted {
			n.Headline = "Halted: " + haltText(&s.Halt.Halt)
			n.Detail = "Every job would fail the same way. No call is made, and jobs stay on the queue. Seen by " + s.Halt.By + "."
		}
	}
	if s.Stopping && s.Halt == nil {
		n.State, n.Headline, n.Detail = "starting", "Stopping", "Jobs in flight may end, for up to 30 s. Nothing is lost."
	}
}

// describeEnd says how a process ended; that a halt ended it stays.
func (p *Process) describeEnd(n *page.Snapshot, s *State) {
	n.Process.CanPause, n.Process.CanGo = false, false
	for i := range n.Live {
		n.Live[i].Left = nil
	}
	if s.Halt != nil {
		return
	}
	n.Process.State, n.Process.Headline, n.Process.Detail = "stopped", "Stopped", "The process has ended. What is not done stays on the queue."
	n.Process.Remedy, n.Process.Command = "", ""
	for _, i := range n.Over {
		if i.ID == p.cfg.Import {
			n.Process.State, n.Process.Headline, n.Process.Detail = "done", "Done", fmt.Sprintf(
				"The import is %s, and the process has ended. %s of %s conversations are in their groups.", i.State, Count(i.Done), Count(i.Total))
			if i.Removals > 0 {
				n.Process.Detail += fmt.Sprintf(" %s of %s were taken out of theirs.", Count(i.Removed), Count(i.Removals))
			}
			return
		}
	}
	switch {
	case p.cfg.Import != "":
		n.Process.Command = p.cfg.Engine.Resume
	case p.cfg.Drain && len(n.Live) == 0:
		n.Process.State, n.Process.Headline, n.Process.Detail = "done", "Done", "Every job has its result, and the process has ended."
	}
}

func pausedImport(s *State) string {
	for _, i := range s.Progress.Imports {
		if i.Import.Paused {
			return i.Import.ID
		}
	}
	return ""
}

// rateNote says where the rate comes from, if it is not simply what all processes were started with.
func rateNote(s *State) string {
	switch {
	case s.RateCapped:
		return "the limit of the app"
	case s.RateSet > 0:
		return "set by hand"
	case s.RateOf != "":
		return "the lowest, of " + s.RateOf
	}
	return ""
}

// haltText says why no call is made, without the text of the API.
func haltText(h *queue.Halt) string {
	if code, err := strconv.Atoi(h.Code); err == nil {
		return h.Code + " " + chat.Meaning(code)
	}
	if status, found := strings.CutPrefix(h.Code, "http-"); found {
		return "HTTP status " + status
	}
	if h.Code != "" {
		return h.Code
	}
	return h.Reason // it is groupferry's own
}

// outageText says what became of a call, without what a server sent.
func outageText(err error) string {
	var e *chat.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e) && e.Status != 0:
		return fmt.Sprintf("HTTP status %d", e.Status)
	case errors.As(err, &e):
		return codeOnPage(e.Reason()).Meaning
	}
	return ""
}

// callsOf are the calls of this process.
func callsOf(s *State) page.Calls {
	c := page.Calls{Limit: float64(s.Rate), Bucket: callsBucket, Commands: []page.CommandSum{}}
	for _, command := range slices.Sorted(maps.Keys(s.Calls)) {
		r := s.Calls[command]
		c.Commands = append(c.Commands, page.CommandSum{Command: command, PerSecond: tenths(r.PerSecond...), Now: tenths(r.Now)[0]})
	}
	if s.Progress != nil && s.Halt == nil {
		c.Jobs = tenths(s.Progress.Totals("").Rate)[0]
	}
	return c
}

func tenths(values ...float64) []float64 {
	for i, v := range values {
		values[i] = math.Round(v*10) / 10
	}
	return values
}

// importsOnPage shows the imports: those that are not over by their progress, the others by their records.
func importsOnPage(n *page.Snapshot, s *State) {
	over, shown := map[string]bool{}, map[string]bool{}
	for _, r := range s.Records {
		over[r.ID] = r.State.Over()
	}
	if s.LastProgress != nil {
		for _, p := range s.LastProgress.Imports {
			if p.Import.ID == "" || s.Progress == nil && over[p.Import.ID] {
				continue // not even its record can be read; or that one knows more
			}
			i := importOnPage(p.Progress)
			shown[i.ID] = true
			if p.Import.State.Over() {
				n.Over = append(n.Over, i)
				continue
			}
			t := (&Progress{Imports: []ImportProgress{{Progress: p.Progress}}}).Totals("")
			i.Jobs, i.Finished, i.InFlight, i.FailedJobs = t.Jobs, t.Finished, t.InFlight, t.Failed
			i.Left = secondsLeft(s, &p, &t)
			switch {
			case p.Damaged != nil:
				i.State, i.Note = "damaged", onPage(p.Damaged.Error())
			case p.Abandoned:
				i.State, i.Note = "abandoned", "it is not on the queue as a whole, and nothing comes any more"
			case p.Import.Paused:
				i.State = "paused"
			case s.Halt != nil && p.Import.State == queue.Running:
				i.State = "waiting"
			}
			n.Live = append(n.Live, i)
		}
	}
	for _, r := range s.Records {
		switch i := importOnPage(queue.Progress{Import: *r, Counts: r.Counts}); {
		case shown[r.ID]:
		case r.State.Over():
			n.Over = append(n.Over, i)
		default: // its progress was not read yet
			i.Unknown = true
			n.Live = append(n.Live, i)
		}
	}
	newest := func(a, b page.Import) int { return cmp.Or(cmp.Compare(b.Begun, a.Begun), cmp.Compare(a.ID, b.ID)) }
	slices.SortFunc(n.Live, newest)
	slices.SortFunc(n.Over, newest)
}

// filesOnPage is of how many files of an import the page has the names.
const filesOnPage = 3

// onPage makes a text that is somebody's own fit to stand on the page: a name cannot turn what stands beside it around.
func onPage(s string) string { return redact.Visible(s, "") }

func importOnPage(p queue.Progress) page.Import {
	r, c := &p.Import, &p.Counts
	i := page.Import{
		ID: r.ID, Name: r.ID, FileCount: fileCount(r.Files), Begun: millis(r.Created), State: string(r.State),
		Total: r.Conversations, Done: c.Conversations.Done, Failed: c.Conversations.Failed + c.Removals.Failed, Removed: c.Removals.Done,
		Removals: r.Removals, Rejected: r.Rejected, Rejects: onPage(r.RejectsFile), Codes: c.Codes,
		Retry: r.State == queue.Complete && r.NextNight == 0 && c.Jobs.Partial+c.Jobs.Failed > 0,
	}
	if r.Sync != "" {
		i.Name = fmt.Sprintf("%s, night %d", onPage(r.Sync), r.Night)
	}
	i.Files = []string{} // of thousands a page shows the first
	for _, file := range r.Files[:min(len(r.Files), filesOnPage)] {
		i.Files = append(i.Files, onPage(file))
	}
	if r.State.Over() {
		i.Ended = millis(r.Completed)
	}
	return i
}

// secondsLeft is how long an import will take; nil when nobody knows, or no call is made.
func secondsLeft(s *State, p *ImportProgress, t *Totals) *float64 {
	if !works(s, *t) {
		return nil
	}
	rate, over := p.Rate, p.RateOver
	if time.Since(p.At).Abs() >= rateFresh {
		rate, over = 0, 0
	}
	left := timeLeft(t.Jobs-t.Finished, planned(s.possible(), t.Jobs, t.Calls), rate, over).Seconds()
	if left == 0 {
		return nil
	}
	return &left
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// ownCodes are the codes of failures that are not the API's.
var ownCodes = map[string]page.Code{
	worker.CodePanic:        {Meaning: "the program failed at this job", Remedy: "please report it, with the log of the process"},
	worker.CodeNoResult:     {Meaning: "the response had no result for it", Remedy: "retry; if it stays, ask the vendor"},
	worker.CodeNotInGroup:   {Meaning: "the API accepted it, and it is not in its group", Remedy: "retry; 'groupferry verify' lists what is missing"},
	worker.CodeStillInGroup: {Meaning: "the API accepted its removal, and it is still in its group", Remedy: "retry; if it stays, ask the vendor"},
	worker.CodeNeedsUpdate: {Meaning: "only update_contact_group could do it, and the API does not offer that",
		Remedy: "ask the vendor to offer update_contact_group, then retry"},
	worker.CodeNoEnd:   {Meaning: "the list of the user's groups is cut short", Remedy: "ask the vendor whether the plan of the app limits it"},
	worker.CodeChanged: {Meaning: "the user's groups changed each time that they were read", Remedy: "retry when nobody changes them"},
	job.CodeNotRenamed: {Meaning: "the group could not be renamed: there is one of the new name", Remedy: "rename or delete one of them, then retry"},
	job.CodeUndecodable: {Meaning: "the job could not be read, or the API's response to it",
		Remedy: "retry; if it stays, 'groupferry results IMPORT --summary' has its text"},
	queue.CodeCrashed:    {Meaning: "the process ended each time that it did this job", Remedy: "please report it; then retry"},
	queue.CodeTooLarge:   {Meaning: "its result is too large for the NATS server", Remedy: "raise max_payload of the server, then retry"},
	queue.OtherCodes:     {Meaning: "codes beyond the first " + strconv.Itoa(queue.MaxCodes), Remedy: "'groupferry results IMPORT --summary' lists all"},
	chat.ReasonTimeout:   {Meaning: "the API did not respond in time", Remedy: remedyNetwork},
	chat.ReasonRefused:   {Meaning: "the connection was refused", Remedy: remedyNetwork},
	chat.ReasonReset:     {Meaning: "the connection was lost", Remedy: remedyNetwork},
	chat.ReasonCutOff:    {Meaning: "the response was cut off", Remedy: remedyNetwork},
	chat.ReasonNetwork:   {Meaning: "the network failed", Remedy: remedyNetwork},
	chat.ReasonCancelled: {Meaning: "the call was cut short by a stop", Remedy: "retry"},
	chat.ReasonUnsent:    {Meaning: "the call was not sent", Remedy: "retry"},
}

const remedyNetwork = "see that this host reaches the API, then retry"

// codeOnPage says what is known about a code.
func codeOnPage(code string) page.Code {
	if c, own := ownCodes[code]; own {
		return c
	}
	if n, err := strconv.Atoi(code); err == nil {
		return page.Code{Meaning: chat.Meaning(n), Remedy: chat.Remedy(n)}
	}
	if status, found := strings.CutPrefix(code, "http-"); found {
		n, _ := strconv.Atoi(status)
		e := chat.Error{Status: n}
		return page.Code{Meaning: "HTTP status " + status + " instead of a response", Remedy: cmp.Or(e.Remedy(), remedyNetwork)}
	}
	return page.Code{Meaning: "unknown", Remedy: "'groupferry results IMPORT --summary' has its text"}
}
