package worker

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"groupferry/internal/chat"
)

// A Reading is what create_contact_group does to a group that exists. No document says.
type Reading string

// The readings. While none is known, any of them may be true.
const (
	Append  Reading = "append"  // it adds to the group
	Replace Reading = "replace" // it takes out what it does not name
	Refuse  Reading = "refuse"  // it fails with a code
)

// Known is what was learned about an API, to be kept for the next run against the same one. The zero value is that
// nobody tried yet.
type Known struct {
	Create   Reading   `json:"create,omitempty"`
	Refusal  int       `json:"refusal,omitempty"` // the code with which create refuses
	CreateAt time.Time `json:"create_at,omitzero"`

	// When the command was last found not to be offered.
	NoUpdateAt time.Time `json:"no_update_at,omitzero"`
	NoGetAt    time.Time `json:"no_get_at,omitzero"`
}

const (
	// knownFor is how long what create does is taken as known: the next nightly run finds it out again, by two calls.
	knownFor = 12 * time.Hour

	// askAgain is when a command that was not offered is tried again.
	askAgain = 10 * time.Minute

	// notFoundMost is how many HTTP 404 in a row stand for a command that is not offered, if none of it ever had a response:
	// a single one may come from something in between.
	notFoundMost = 5
)

// knowledge is what is known about the API by now. It is safe for concurrent use.
type knowledge struct {
	log  *slog.Logger
	save func(Known) // may be nil

	trying chan struct{} // one place: the job that finds out what create does

	mu        sync.Mutex
	known     Known
	responded map[chat.Command]bool
	notFound  map[chat.Command]int   // in a row
	why       map[chat.Command]error // it is not offered
}

func newKnowledge(known Known, save func(Known), log *slog.Logger) *knowledge {
	return &knowledge{
		log: log, save: save, known: known, trying: make(chan struct{}, 1),
		responded: map[chat.Command]bool{}, notFound: map[chat.Command]int{}, why: map[chat.Command]error{},
	}
}

// create gives what create does to a group that exists, "" when it is not known, and the code with which it refuses.
func (k *knowledge) create() (Reading, int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.known.CreateAt).Abs() > knownFor {
		return "", 0
	}
	return k.known.Create, k.known.Refusal
}

// harmless tells whether create is known to leave what is in a group that exists.
func (k *knowledge) harmless() bool {
	reading, _ := k.create()
	return reading == Append || reading == Refuse
}

func (k *knowledge) learn(r Reading, refusal int) {
	k.log.Info("learned what create does to a group that exists", "reading", r)
	k.change(func(n *Known) { n.Create, n.Refusal, n.CreateAt = r, refusal, time.Now().Round(0) })
}

func (k *knowledge) change(set func(*Known)) {
	k.mu.Lock()
	set(&k.known)
	now := k.known
	k.mu.Unlock()
	if k.save != nil {
		k.save(now)
	}
}

func (n *Known) missing(c chat.Command) *time.Time {
	if c == chat.UpdateContactGroup {
		return &n.NoUpdateAt
	}
	return &n.NoGetAt
}

// offers tells whether update or get can be called, as far as is known.
func (k *knowledge) offers(c chat.Command) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Since(*k.known.missing(c)).Abs() > askAgain
}

// heard notes that the API itself responded to a command.
func (k *knowledge) heard(c chat.Command) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.responded[c], k.notFound[c] = true, 0
}

// missed notes a response that says that update or get is not offered, and tells whether that is to be believed.
func (k *knowledge) missed(e *chat.Error) bool {
	k.mu.Lock()
	k.notFound[e.Command]++
	k.why[e.Command] = e
	believed := e.Code == chat.CodeNotOffered || !k.responded[e.Command] && k.notFound[e.Command] >= notFoundMost
	k.mu.Unlock()
	if !believed || !k.offers(e.Command) {
		return believed
	}
	if e.Command == chat.UpdateContactGroup {
		k.log.Warn("update_contact_group is not offered here: groups are written with create alone, which carries 100 "+
			"conversations; where a group has more, the rest fails, unless create is found to add to groups", "err", e)
	} else {
		k.log.Warn("get_contact_group is not offered here: groups cannot be read back", "err", e)
	}
	k.change(func(n *Known) { *n.missing(e.Command) = time.Now().Round(0) })
	return true
}

// mayReplace is [ErrMayReplace] with what the API said.
func (k *knowledge) mayReplace() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := ErrMayReplace
	for _, c := range []chat.Command{chat.UpdateContactGroup, chat.GetContactGroup} {
		if why := k.why[c]; why != nil { // else it was learned earlier
			err = fmt.Errorf("%w; %w", err, why)
		}
	}
	return err
}

// keys are locks by name.
type keys struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go
}

// try takes a key that nobody holds, or gives what is closed when its holder lets go.
func (k *keys) try(key string) (free func(), wait <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if held := k.held[key]; held != nil {
		return nil, held
	}
	mine := make(chan struct{})
	k.held[key] = mine
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.held, key)
		close(mine)
	}, nil
}
