package chatsim

import (
	"maps"
	"slices"
	"time"

	"groupferry/internal/chat"
)

// maxSamples is how many bad requests a ledger keeps in full.
const maxSamples = 20

// A Ledger counts what arrived. Its JSON form is the response to GET /ledger.
type Ledger struct {
	Commands map[chat.Command]Calls `json:"commands"` // every command, also those without a call
	NotFound int                    `json:"not_found"`

	Users         int `json:"users"`         // that have a group
	Groups        int `json:"groups"`        //
	Conversations int `json:"conversations"` // in groups; one in two groups counts twice

	Added       int `json:"added"`        // conversations put into a group that they were not in
	Readded     int `json:"readded"`      // put into a group that they were in
	Removed     int `json:"removed"`      // taken out of one that they were in, or that was deleted
	ItemsFailed int `json:"items_failed"` // conversations whose result had a code

	Deleted int `json:"deleted"` // groups
	Renamed int `json:"renamed"` // groups that got another name

	BadRequests int          `json:"bad_requests"` // calls that break a documented limit, format or permission
	BadSamples  []BadRequest `json:"bad_samples"`  // the first 20 of them

	MostAtOnce int `json:"most_at_once"` // the most calls of one user in flight at the same time
}

// Calls counts the calls of one command. A call in flight is counted in Calls only; an ended one also in one of the
// four fields below it.
type Calls struct {
	Calls     int `json:"calls"`     // that arrived
	OK        int `json:"ok"`        // ErrorCode 0, whatever the results of the conversations
	Throttled int `json:"throttled"` // 60007 or 60011
	Faulted   int `json:"faulted"`   // struck by a fault
	Failed    int `json:"failed"`    // another code or HTTP status

	MaxPerSecond int     `json:"max_per_second"` // the most arrivals in any second
	MaxPer100ms  int     `json:"max_per_100ms"`  // the most arrivals in any 100 ms
	OverLimit    int     `json:"over_limit"`     // arrivals that had the limit or more in the second before them
	Seconds      float64 `json:"seconds"`        // from the first arrival to the last
}

// A BadRequest is a call that a correct client does not make.
type BadRequest struct {
	Command chat.Command `json:"command"`
	Code    int          `json:"code"` // of the response; or the HTTP status
	Reason  string       `json:"reason"`
}

// outcome says which field of [Calls] counts a call.
type outcome int

const (
	accepted outcome = iota
	throttled
	faulted
	failed
)

// A window counts events in a sliding span of time. It keeps only the events of one span.
type window struct {
	span  time.Duration
	times []time.Time // ascending
	max   int         // most events that any span has held
}

// count returns the number of events in the span that ends now. The end belongs to the span, its beginning does not.
func (w *window) count(now time.Time) int {
	over := 0
	for over < len(w.times) && now.Sub(w.times[over]) >= w.span {
		over++
	}
	w.times = w.times[over:] // append frees the old part when it next allocates
	return len(w.times)
}

// add records an event and returns how many were in the span before it. Events must be added in order of time.
func (w *window) add(now time.Time) int {
	before := w.count(now)
	w.times = append(w.times, now)
	w.max = max(w.max, before+1)
	return before
}

// tally holds the counts of one command.
type tally struct {
	Calls
	first, last   time.Time // arrival
	second, tenth window    // of arrivals
	taken         window    // of the calls that were not throttled
}

// book holds the running counts behind a [Ledger].
type book struct {
	commands map[chat.Command]*tally
	taken    window // of all commands
	Ledger          // without Commands and the counts of groups, which [Sim.Ledger] computes
}

func newBook() book {
	b := book{commands: make(map[chat.Command]*tally), taken: window{span: time.Second}}
	for _, c := range chat.Commands() {
		b.commands[c] = &tally{
			second: window{span: time.Second},
			tenth:  window{span: time.Second / 10},
			taken:  window{span: time.Second},
		}
	}
	return b
}

// arrive records a call that arrived now. It returns the code if the call is throttled, else 0. A throttled call does
// not count towards the limit.
func (b *book) arrive(command chat.Command, now time.Time, rate, appRate int) int {
	t := b.commands[command]
	if t.Calls.Calls++; t.Calls.Calls == 1 {
		t.first = now
	}
	t.last = now
	limit := rate
	if limit < 0 {
		limit = chat.MaxRate
	}
	if t.second.add(now) >= limit {
		t.OverLimit++
	}
	t.tenth.add(now)
	switch {
	case rate >= 0 && t.taken.count(now) >= rate:
		return chat.CodeThrottled
	case appRate > 0 && b.taken.count(now) >= appRate:
		return chat.CodeAppThrottled
	}
	t.taken.add(now)
	b.taken.add(now)
	return 0
}

func (b *book) end(command chat.Command, o outcome) {
	t := b.commands[command]
	switch o {
	case accepted:
		t.OK++
	case throttled:
		t.Throttled++
	case faulted:
		t.Faulted++
	case failed:
		t.Failed++
	}
}

func (b *book) bad(command chat.Command, code int, reason string) {
	b.BadRequests++
	if len(b.BadSamples) < maxSamples {
		b.BadSamples = append(b.BadSamples, BadRequest{Command: command, Code: code, Reason: reason})
	}
}

// Ledger returns the current ledger.
func (s *Sim) Ledger() Ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.book.Ledger
	l.BadSamples = slices.Clone(l.BadSamples)
	l.Commands = make(map[chat.Command]Calls)
	for c, t := range s.book.commands {
		calls := t.Calls
		calls.MaxPerSecond, calls.MaxPer100ms = t.second.max, t.tenth.max
		calls.Seconds = t.last.Sub(t.first).Seconds()
		l.Commands[c] = calls
	}
	for u := range maps.Values(s.users) {
		if len(u.groups) > 0 {
			l.Users++
		}
		l.Groups += len(u.groups)
		for _, g := range u.groups {
			l.Conversations += len(g.items)
		}
	}
	return l
}
