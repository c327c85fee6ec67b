package governor

import (
	"sync/atomic"
	"time"
)

// enoughTrips is how many round trips have to be seen before the shortest is taken for the shortest there is: five
// seconds at 200 calls a second.
const enoughTrips = 1000

// Trips remembers the shortest round trip of many: from when a call was on its connection to the first byte of its
// answer. The zero value is ready to use.
type Trips struct {
	seen, shortest atomic.Int64
}

// Note takes a round trip in.
func (t *Trips) Note(d time.Duration) {
	d = max(d, 1) // 0 stands for none
	t.seen.Add(1)
	for {
		was := t.shortest.Load()
		if was != 0 && was <= int64(d) || t.shortest.CompareAndSwap(was, int64(d)) {
			return
		}
	}
}

// Shortest returns the shortest round trip, 0 until enough have been seen.
func (t *Trips) Shortest() time.Duration {
	if t.seen.Load() < enoughTrips {
		return 0
	}
	return time.Duration(t.shortest.Load())
}
