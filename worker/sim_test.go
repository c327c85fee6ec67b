package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/clock"
	"groupferry/internal/governor"
	"groupferry/internal/job"
)

// A sleeper is an API on a machine that is suspended again and again: between the permit of a call and the call. Its
// monotonic clock stands still then, and its wall clock is an hour ahead when it wakes up.
type sleeper struct {
	*chat.Client
	every  int // calls
	wakeUp func()

	mu     sync.Mutex
	asleep time.Duration
	begun  int
	naps   int
	unsent int
}

func (s *sleeper) wall() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.asleep)
}

func (s *sleeper) Create(ctx context.Context, r chat.CreateRequest) (chat.Response, error) {
	s.mu.Lock()
	s.begun++
	nap := s.begun%s.every == 0
	if nap {
		s.naps++
		s.asleep += time.Hour
	}
	s.mu.Unlock()
	response, err := s.Client.Create(ctx, r)
	var e *chat.Error
	if errors.As(err, &e) && e.Unsent() {
		s.mu.Lock()
		s.unsent++
		s.mu.Unlock()
	}
	if nap {
		s.wakeUp()
	}
	return response, err
}

// TestSuspendedMachine makes real calls to the simulator from a machine that is suspended between permits and writes.
// Nothing is sent after it woke up on a permit from before: each group is created by one call, and never too many calls
// arrive.
func TestSuspendedMachine(t *testing.T) {
	const jobs, rate = 300, 200
	sim := chatsim.New(chatsim.Config{Rate: rate})
	url, err := sim.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sim.Close()
	client, err := chat.New(chat.Config{BaseURL: url, SDKAppID: chatsim.DemoSDKAppID, SecretKey: chatsim.DemoSecretKey})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	api := &sleeper{Client: client, every: 25}
	clk := clock.Clock{Wall: api.wall}
	g := startGovernor(t, governor.Config{Rate: rate, Clock: clk})
	api.wakeUp = func() { // the lease is renewed at once
		calls, _ := g.Propose()
		g.Promised(calls, clk.In(2*time.Second))
	}
	s := newStream()
	for i := range jobs {
		j := testJob(fmt.Sprint("u", i), "g", 3)
		s.add(j.AppendJSON(nil))
	}
	if err := workWith(t, Config{Known: appends(), Concurrency: 64}, s, api, g); err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, r := range s.results {
		calls += r.Calls
		if r.Outcome != job.Done || r.Attempts != 1 || r.Calls != 1 {
			t.Errorf("%s: got %s after %d attempts and %d calls, want done after 1 and 1", r.FromAccount, r.Outcome, r.Attempts, r.Calls)
		}
	}
	ledger := sim.Ledger()
	create := ledger.Commands[chat.CreateContactGroup]
	if create.Calls != jobs || calls != jobs || ledger.Groups != jobs {
		t.Errorf("%d calls arrived for %d groups and %d were counted, want %d of each", create.Calls, ledger.Groups, calls, jobs)
	}
	if create.OverLimit != 0 || create.MaxPerSecond > rate || ledger.MostAtOnce != 1 || ledger.BadRequests != 0 {
		t.Errorf("got %+v, at most %d calls of a user at once, %d bad ones", create, ledger.MostAtOnce, ledger.BadRequests)
	}
	if api.naps < jobs/api.every || api.unsent < api.naps {
		t.Errorf("%d calls were held back in %d suspensions, want at least one in each of %d", api.unsent, api.naps, jobs/api.every)
	}
}
