package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// BenchmarkPace writes 2,000 groups at the default rate to a simulator that enforces the limit, and says what arrived
// there: calls a second from the first to the last, the most in any second and in any 100 ms, and how many were throttled.
func BenchmarkPace(b *testing.B) {
	for _, bench := range []struct {
		name            string
		latency, jitter time.Duration
	}{
		{"latency=0", 0, 0},
		{"latency=50±10ms", 50 * time.Millisecond, 10 * time.Millisecond},
	} {
		b.Run(bench.name, func(b *testing.B) {
			sizes := make([]int, 2000)
			for i := range sizes {
				sizes[i] = 1
			}
			file := writeRows(b, makeRows(30, sizes...))
			var rate float64
			var most, mostPer100ms, throttled int
			for b.Loop() {
				sim := chatsim.New(chatsim.Config{SecretKey: testKey, Latency: bench.latency, Jitter: bench.jitter})
				var mu sync.Mutex
				var first, last time.Time
				calls := 0
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, string(chat.CreateContactGroup)) {
						mu.Lock()
						last = time.Now()
						if calls++; calls == 1 {
							first = last
						}
						mu.Unlock()
					}
					sim.ServeHTTP(w, r)
				}))
				s := newShell(b, server.URL)
				delete(s.env, "GROUPFERRY_RATE")
				s.run(exitDone, "run", "--quiet", file)
				server.Close()
				sim.Close()
				l := sim.Ledger().Commands[chat.CreateContactGroup]
				rate += float64(calls-1) / last.Sub(first).Seconds()
				most, mostPer100ms = max(most, l.MaxPerSecond), max(mostPer100ms, l.MaxPer100ms)
				throttled += l.Throttled
			}
			b.ReportMetric(rate/float64(b.N), "calls/s")
			b.ReportMetric(float64(most), "most/s")
			b.ReportMetric(float64(mostPer100ms), "most/100ms")
			b.ReportMetric(float64(throttled), "throttled")
		})
	}
}

// BenchmarkDrain works jobs off a queue that syncs every write, in a process of its own, without latency and without a
// limit, and says how many a second, from the first call to the last, and what CPU time a thousand took: everything that
// the process used from its start to its end, the embedded server included, the simulator not. The fewer jobs, the more
// weigh the start and the first seconds, in which the process takes its memory from the system.
func BenchmarkDrain(b *testing.B) {
	for _, jobs := range []int{10_000, 40_000} {
		b.Run(fmt.Sprintf("jobs=%d", jobs), func(b *testing.B) { drain(b, jobs) })
	}
}

func drain(b *testing.B, jobs int) {
	sizes := make([]int, jobs)
	for i := range sizes {
		sizes[i] = 20
	}
	file := writeRows(b, makeRows(31, sizes...))
	var rate, cpu float64
	for b.Loop() {
		sim := chatsim.New(chatsim.Config{SecretKey: testKey, Rate: -1})
		var mu sync.Mutex
		var first, last time.Time
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, string(chat.CreateContactGroup)) {
				mu.Lock()
				last = time.Now()
				if first.IsZero() {
					first = last
				}
				mu.Unlock()
			}
			sim.ServeHTTP(w, r)
		}))
		s := newShell(b, server.URL)
		s.run(exitDone, "import", "--quiet", "--import-id", "drain", file)
		p := s.spawn("work", "--drain", "--quiet", "--listen", "off", "--rate", "1000000")
		if code := p.wait(); code != exitDone {
			b.Fatalf("got exit code %d, want 0\n%s", code, &p.stderr)
		}
		server.Close()
		sim.Close()
		if got := created(sim); got != jobs+1 { // one more, to learn what create does
			b.Errorf("got %d create calls, want %d", got, jobs+1)
		}
		rate += float64(jobs) / last.Sub(first).Seconds()
		used := p.cmd.ProcessState
		cpu += (used.UserTime() + used.SystemTime()).Seconds() / float64(jobs) * 1000
	}
	b.ReportMetric(rate/float64(b.N), "jobs/s")
	b.ReportMetric(cpu/float64(b.N), "cpu-s/1000jobs")
}
