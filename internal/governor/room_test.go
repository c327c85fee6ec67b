package governor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// There is room as soon as a call that waited for its turn has its permit, or leaves. Calls that wait for another call of
// their user take no room.
func TestAwaitRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(Config{Rate: 1})
		first, err := g.Acquire(t.Context(), create, "a") // the one permit there is
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		wait := func(ctx context.Context, user string) chan *Permit {
			got := make(chan *Permit, 1)
			go func() {
				p, _ := g.Acquire(ctx, create, user)
				got <- p
			}()
			synctest.Wait()
			return got
		}
		again := wait(t.Context(), "a") // behind the first call of its user
		b, c := wait(t.Context(), "b"), wait(ctx, "c")
		synctest.Wait()
		if err := g.AwaitRoom(t.Context(), create, 3); err != nil {
			t.Errorf("two wait for their turn: got %v, want room for a third", err)
		}
		room := make(chan error, 1)
		await := func(most int) {
			go func() { room <- g.AwaitRoom(t.Context(), create, most) }()
			synctest.Wait()
		}
		await(2)
		if len(room) > 0 {
			t.Error("two wait for their turn: got room below 2, want none")
		}
		first.Done(Responded)
		(<-again).Done(Responded) // which came before the others
		(<-b).Done(Responded)
		if err := <-room; err != nil {
			t.Errorf("one has its permit: got %v, want room", err)
		}
		await(1)
		leave()
		<-c
		synctest.Wait()
		select {
		case err := <-room:
			if err != nil {
				t.Errorf("the others left: got %v, want room", err)
			}
		default:
			t.Error("the others left: got no room")
		}
		wait(t.Context(), "d")
		wait(t.Context(), "e")
		await(1)
		g.Close()
		if err := <-room; !errors.Is(err, ErrClosed) {
			t.Errorf("closed: got %v, want %v", err, ErrClosed)
		}
	})
}
