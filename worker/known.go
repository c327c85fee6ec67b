package worker

import (
	"errors"
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

// Known is what was learned about an API, to be kept for the next run against the same one. The zero value means that
// nothing is known.
type Known struct {
	Create   Reading   `json:"create,omitempty"`
	CreateAt time.Time `json:"create_at,omitzero"` // when that was learned
	Names    Names     `json:"names,omitempty"`
	NamesAt  time.Time `json:"names_at,omitzero"`

	// When the command was last found not to be offered.
	NoUpdateAt time.Time `json:"no_update_at,omitzero"`
	NoGetAt    time.Time `json:"no_get_at,omitzero"`
	NoDeleteAt time.Time `json:"no_delete_at,omitzero"`
}

const (
	// knownFor is how long the readings are used. After that one job learns that of create again, by two creates and a
	// read; that of names is learned by a [Trial] alone.
	knownFor = 7 * 24 * time.Hour

	// askAgain is when a command that was not offered is tried again.
	askAgain = 10 * time.Minute
)

// offer is what this process knows about update, get or del. HTTP 404 means that the command is not offered if it lasts, and
// if the command never had a response: something in between can respond with 404 for a moment.
type offer struct {
	responded bool
	notFound  repeats
	why       error // it is not offered
}

// knowledge is what is known about the API by now. It is safe for concurrent use.
type knowledge struct {
	log  *slog.Logger
	save func(Known) // may be nil; must not block

	trying chan struct{} // one place: the job that finds out what create does

	mu    sync.Mutex
	known Known
	offer map[chat.Command]*offer
}

func newKnowledge(known Known, save func(Known), log *slog.Logger) *knowledge {
	return &knowledge{
		log: log, save: save, known: known, trying: make(chan struct{}, 1),
		offer: map[chat.Command]*offer{chat.UpdateContactGroup: {}, chat.GetContactGroup: {}, chat.DelContactGroup: {}},
	}
}

// create returns what create does to a group that exists, "" when it is not known.
func (k *knowledge) create() Reading {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.known.CreateAt).Abs() > knownFor {
		return ""
	}
	return k.known.Create
}

// exactNames reports whether names that differ at all are known to be those of different groups.
func (k *knowledge) exactNames() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known.Names == ExactNames && time.Since(k.known.NamesAt).Abs() <= knownFor
}

// harmless reports whether create is known to keep what is in a group that exists. A rejected create does not show
// that: it may have been rejected for another reason.
func (k *knowledge) harmless() bool { return k.create() == Append }

func (k *knowledge) learn(r Reading) {
	k.log.Info("learned what create does to a group that exists", "reading", r)
	k.change(func(n *Known) { n.Create, n.CreateAt = r, time.Now().Round(0) })
}

func (k *knowledge) change(set func(*Known)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	set(&k.known)
	if k.save != nil {
		k.save(k.known)
	}
}

func (n *Known) missing(c chat.Command) *time.Time {
	switch c {
	case chat.UpdateContactGroup:
		return &n.NoUpdateAt
	case chat.DelContactGroup:
		return &n.NoDeleteAt
	}
	return &n.NoGetAt
}

// offers reports whether update, get or del can be called, as far as is known.
func (k *knowledge) offers(c chat.Command) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Since(*k.known.missing(c)).Abs() > askAgain
}

// heard notes that the API itself responded to a command.
func (k *knowledge) heard(c chat.Command) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o := k.offer[c]; o != nil {
		o.responded = true
		o.notFound.reset()
	}
}

// missed notes a response that says that update, get or del is not offered, and reports whether that is to be believed.
func (k *knowledge) missed(e *chat.Error) bool {
	k.mu.Lock()
	o := k.offer[e.Command]
	o.why = e
	lasts := o.notFound.add()
	believed := e.Code == chat.CodeNotOffered || !o.responded && lasts
	k.mu.Unlock()
	if !believed || !k.offers(e.Command) {
		return believed
	}
	switch e.Command {
	case chat.UpdateContactGroup:
		k.log.Warn("update_contact_group is not offered here: groups are written with create alone, which carries 100 "+
			"conversations; where a group has more, the rest fails, unless create is found to add to groups", "error", e)
	case chat.DelContactGroup:
		k.log.Warn("del_contact_group is not offered here: groups in which nothing is wanted any more stay, and are empty", "error", e)
	default:
		k.log.Warn("get_contact_group is not offered here: groups cannot be read back", "error", e)
	}
	k.change(func(n *Known) { *n.missing(e.Command) = time.Now().Round(0) })
	return true
}

// mayReplace returns [ErrMayReplace] with the responses of the API, and why the group was not read. What this process
// did not learn itself is dropped, to be tried again: then the error is errStale.
func (k *knowledge) mayReplace(unread error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if errors.Is(unread, errNoEnd) {
		k.offer[chat.GetContactGroup].why = unread
	}
	err, ask := ErrMayReplace, false
	for _, c := range []chat.Command{chat.UpdateContactGroup, chat.GetContactGroup} {
		why := k.offer[c].why
		if why == nil {
			*k.known.missing(c) = time.Time{}
			ask = true
		}
		err = fmt.Errorf("%w; %w", err, why)
	}
	if ask {
		return errStale
	}
	return err
}

// keys are locks by name.
type keys struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go
}

// try takes a key that nobody holds, or returns a channel that is closed when its holder releases it.
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
