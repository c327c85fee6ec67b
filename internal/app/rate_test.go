package app

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// A lockedBuffer takes the log of an engine.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The lowest rate that a process was started with holds, whoever leads, as long as it runs; and one that is set by hand
// before all of them. Each process says so.
func TestLowestRate(t *testing.T) {
	n := newNamespace(t, chatsim.Config{Rate: -1})
	logs := map[string]*lockedBuffer{}
	start := func(host string, rate int) *engineRun {
		logs[host] = &lockedBuffer{}
		return n.start(func(c *EngineConfig) {
			c.Host, c.Rate, c.Log = host, rate, slog.New(slog.NewTextHandler(logs[host], nil))
			c.Name = fmt.Sprintf("%s-%d", host, time.Now().UnixNano())
		})
	}
	pace := func(e *engineRun, rate int, of string) {
		t.Helper()
		n.await(fmt.Sprintf("%d calls a second, of %q", rate, of), func() bool {
			s := e.State()
			return s.Leading && s.Rate == rate && s.RateOf == of && s.Commands[string(chat.CreateContactGroup)].Limit == float64(rate)
		})
	}
	fast := start("fast", 200)
	pace(fast, 200, "")
	slow := start("slow", 100)
	pace(fast, 100, "slow")
	n.await("the standby to know it", func() bool { s := slow.State(); return s.Rate == 100 && s.RateOf == "slow" })
	for host, started := range map[string]string{"fast": "started_with=200", "slow": "started_with=100"} {
		const lowest = "the lowest holds\" calls_per_second=100 host=slow "
		if log := logs[host].String(); !strings.Contains(log, lowest+started) || !strings.Contains(log, `hint="groupferry rate N"`) {
			t.Errorf("%s: got log %s", host, log)
		}
	}

	for _, set := range []int{150, 30} {
		if err := n.SetRate(t.Context(), set); err != nil {
			t.Fatal(err)
		}
		pace(fast, set, "")
	}
	if err := n.SetRate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	pace(fast, 100, "slow")

	// The hand-over changes nothing, and who stands by knows the rate before it leads.
	third := start("third", 300)
	n.await("the third to know it", func() bool { return third.State().Rate == 100 })
	if err := fast.end(t); err != nil {
		t.Error(err)
	}
	n.await("another leader", func() bool { return slow.Leading() || third.Leading() })
	if s := third.State(); s.Rate != 100 {
		t.Errorf("after the hand-over: got %d calls a second, want 100", s.Rate)
	}

	// When all that run were started with more, more holds.
	if err := slow.end(t); err != nil {
		t.Error(err)
	}
	pace(third, 300, "")
}

// A process that is no longer heard is gone after a while, not at once; and no rate is more than the app has.
func TestSilentRate(t *testing.T) {
	n := newNamespace(t, chatsim.Config{})
	e, err := NewEngine(t.Context(), EngineConfig{
		Namespace: n.Namespace, API: n.client(chatsim.DemoSecretKey), App: testApp, Name: "me", Host: "here", Rate: 200, Limit: 250,
	})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(rate int, of string, capped bool) {
		t.Helper()
		if s := e.State(); s.Rate != rate || s.RateOf != of || s.RateCapped != capped {
			t.Errorf("got %d of %q, capped %t; want %d of %q, %t", s.Rate, s.RateOf, s.RateCapped, rate, of, capped)
		}
	}
	say := func(name, host string, rate int) {
		e.heard(fmt.Appendf(nil, `{"name":%q,"host":%q,"rate":%d}`, name, host, rate))
	}
	expect(200, "", false)
	e.heard([]byte("no JSON"))
	say("me", "here", 10) // its own
	expect(200, "", false)
	say("same", "there", 200)
	expect(200, "", false)
	say("high", "there", 300)
	expect(200, "here", false)
	say("b", "host-b", 90)
	say("a", "host-a", 90)
	expect(90, "host-a", false)
	say("a", "host-a", 0) // it leaves
	expect(90, "host-b", false)
	for range mostMissed {
		e.forgetSilent()
	}
	expect(90, "host-b", false)
	say("b", "host-b", 90)
	e.forgetSilent()
	expect(90, "host-b", false) // the others are gone
	for range mostMissed {
		e.forgetSilent()
	}
	expect(200, "", false)
	e.changeRates(func(r *rates) { r.set = 5000 })
	expect(250, "", true)
	e.changeRates(func(r *rates) { r.set = 0 })
	expect(200, "", false)
}
