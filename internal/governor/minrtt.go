package governor

import (
	"sync/atomic"
	"time"
)

const (
	// minSamples is how many round trips have to be seen before the shortest earns credit: one second at 200 calls a
	// second. The very first ones can all be longer than the path, at an API that has just started.
	minSamples = 200

	// creditMost is half of the round trip to the other side of the earth, 300 ms. Any longer time is spent in the API,
	// and the next call may be faster there.
	creditMost = 150 * time.Millisecond
)

// MinRTT remembers the shortest round trip that a process has ever seen: from when a call was on its connection to the
// first byte of its response. The zero value is ready to use. The minimum never grows again, so a path that got longer
// earns less credit than it could.
type MinRTT struct {
	seen, shortest atomic.Int64
}

// Note records a round trip.
func (m *MinRTT) Note(d time.Duration) {
	d = max(d, 1) // 0 stands for none
	for {
		was := m.shortest.Load()
		if was != 0 && was <= int64(d) || m.shortest.CompareAndSwap(was, int64(d)) {
			break
		}
	}
	m.seen.Add(1) // last: whoever sees enough samples sees the shortest of them
}

// Shortest returns the shortest round trip, 0 if none was seen.
func (m *MinRTT) Shortest() time.Duration { return time.Duration(m.shortest.Load()) }

// credit returns how much earlier than a second after its call a permit may be free; see the package comment.
func (m *MinRTT) credit() time.Duration {
	if m == nil || m.seen.Load() < minSamples {
		return 0
	}
	return min(m.Shortest()/2, creditMost)
}
