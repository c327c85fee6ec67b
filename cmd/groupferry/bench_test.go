package main

import (
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
// there: calls a second from the first to the last, the most in any second and in any 100 ms, and how many were refused.
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
			var most, mostPer100ms, refused int
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
				refused += l.Refused
			}
			b.ReportMetric(rate/float64(b.N), "calls/s")
			b.ReportMetric(float64(most), "most/s")
			b.ReportMetric(float64(mostPer100ms), "most/100ms")
			b.ReportMetric(float64(refused), "refused")
		})
	}
}
