package app

import (
	"testing"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// What was found out about an API is known to the next leader, and says nothing about another address.
func TestKnownAPI(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1, NoUpdate: true, NotOfferedCode: chat.CodeNotOffered})
	updates := func() int { return n.sim.Ledger().Commands[chat.UpdateContactGroup].Calls }
	run := func(id string) {
		t.Helper()
		n.enqueue(id, 3)
		e := n.start(nil)
		n.awaitComplete(id)
		if err := e.end(t); err != nil {
			t.Fatal(err)
		}
	}
	run("first")
	asked := updates()
	run("second")
	if got := updates(); asked == 0 || got != asked {
		t.Errorf("got %d updates, and %d after the second import, want some and no more", asked, got)
	}

	other := newNamespace(t, chatsim.Config{Rate: -1})
	n.sim, n.url = other.sim, other.url
	run("third")
	if updates() == 0 {
		t.Error("another address: got no update, want it to be asked again")
	}
}
