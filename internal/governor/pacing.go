package governor

import (
	"cmp"
	"slices"
	"time"
)

const (
	// spacing is how much closer than 1/rate grants may follow each other.
	spacing = 1.05

	// burst is how many grants may come at once after time was lost. In 100 ms there are then at most
	// 0.1 s × 200/s × 1.05 + 4 = 25.
	burst = 4

	// ahead is how many calls more than usual may be under way that were granted after the last one with a response.
	// When an API that stood still continues, they arrive together with the usual ones: at 50 ms a call that are 10 + 12,
	// and 5 of the trickle, of the 40 that are allowed in 100 ms.
	ahead = 12

	// trickle is how long nothing is granted then until one call goes out all the same: those that are not answered may
	// all be on one broken connection. It doubles with each such call up to trickleMost, so in the 10 s of a call timeout
	// there are 5.
	trickle     = 250 * time.Millisecond
	trickleMost = 4 * time.Second

	// rest is how long nothing is granted after the first response then.
	rest = 100 * time.Millisecond

	// smoothing is the weight of one call in the usual length of a call.
	smoothing = 1.0 / 16

	// A throttled call lowers the rate to slowdown times what the API has taken in the last second, and by a step at
	// least: the limit that it enforces cannot be lower than what it took. It stays above the full rate times least,
	// for an API that refuses calls at random, or because of others, gives no rate to settle at.
	slowdown = 0.97
	step     = 0.95
	least    = 0.05

	// After that the rate stays for hold. Then it rises, each second by firstGain of the full rate, twice as much
	// after each doubling without a throttled call, up to mostGain. So it finds the limit again with a refused call now
	// and then, and a limit that is gone is noticed: from half of the full rate it takes 21 s to the whole.
	hold      = 2 * time.Second
	firstGain = 0.005
	mostGain  = 0.05
	doubling  = 5 * time.Second

	// A promise is twice the most calls under way in the last peakTime to 2 × peakTime, and promiseLeast more: low, since
	// a successor keeps that many permits taken for the call timeout; high enough to double with each renewal.
	peakTime     = 2 * time.Second
	promiseLeast = 8
)

// A lane holds the permits of one command. The lock of its governor is held in all methods.
type lane struct {
	command   string
	limit     float64     // calls a second, as configured
	rate      float64     // calls a second now: less than limit after a throttled call
	floor     float64     // what it was lowered to
	slowed    time.Time   // when that was
	taken     []time.Time // when calls of the last second were answered, throttled ones apart
	inherited int         // permits of a predecessor's calls
	out       int         // permits whose call has not ended, or was cancelled and may still arrive
	granted   uint64      // counts the grants
	ended     uint64      // number of the latest grant whose call has ended
	usual     float64     // length of a call in seconds, smoothed
	cooling   []time.Time // when the others come back, in order
	last      time.Time   // of the last grant
	next      time.Time   // a grant at this time would be on the dot
	held      bool        // too many calls went out ahead of the last response
	trickled  int         // grants since then
	peaks     [2]int      // the most calls under way: since peakFrom, and in the peakTime before
	peakFrom  time.Time
	ready     []*waiter     // by ticket; each is the first of its user
	waiting   int           // all waiters, also those behind another of the same user
	room      chan struct{} // closed when ready gets shorter; nil while nobody waits for that
	throttled int
}

// queue puts a waiter whose turn it is for its user where it would stand if it had never waited for another of that user.
func (l *lane) queue(w *waiter) {
	i, _ := slices.BinarySearchFunc(l.ready, w.ticket, func(o *waiter, t uint64) int { return cmp.Compare(o.ticket, t) })
	l.ready = slices.Insert(l.ready, i, w)
}

// shorter tells those who wait for room that ready got shorter.
func (l *lane) shorter() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// free tells whether a permit is free now, and if not, when to ask again. So many inherited ones are taken until the
// given time.
func (l *lane) free(now time.Time, inherited int, until time.Time) (time.Time, bool) {
	l.recover(now)
	for len(l.cooling) > 0 && !now.Before(l.cooling[0]) {
		l.cooling = l.cooling[1:]
	}
	if l.out+len(l.cooling)+inherited < int(l.rate) {
		return time.Time{}, true
	}
	var again time.Time // where none is cooling, the end of a call is what helps
	if len(l.cooling) > 0 {
		again = l.cooling[0]
	}
	if inherited > 0 && (again.IsZero() || until.Before(again)) {
		again = until
	}
	return again, false
}

// spaced tells whether the steady stream has a place for a call now, and if not, when to ask again.
func (l *lane) spaced(now time.Time) (time.Time, bool) {
	if l.farAhead() {
		l.held = true
		if at := l.last.Add(min(trickle<<l.trickled, trickleMost)); now.Before(at) {
			return at, false
		}
	}
	return l.next, !now.Before(l.next)
}

// farAhead tells whether so many calls went out after the last one that ended that they would arrive as a pulse.
func (l *lane) farAhead() bool { return float64(l.granted-l.ended) >= ahead+l.rate*l.usual }

// grant notes a call that begins now, and returns its number.
func (l *lane) grant(now time.Time) uint64 {
	if l.farAhead() {
		l.trickled = min(l.trickled+1, 10)
	}
	l.out++
	l.granted++
	l.last = now
	space := time.Duration(float64(time.Second) / (l.rate * spacing))
	l.next = later(l.next, now.Add(-(burst-1)*space)).Add(space)
	l.rollPeak(now)
	l.peaks[0] = max(l.peaks[0], l.out)
	return l.granted
}

// release notes that a call is over, whose permit is free at the given time; at once if that is zero.
func (l *lane) release(number uint64, free time.Time) {
	l.out--
	l.ended = max(l.ended, number)
	if free.IsZero() {
		return
	}
	i := len(l.cooling)
	for i > 0 && l.cooling[i-1].After(free) {
		i--
	}
	l.cooling = slices.Insert(l.cooling, i, free)
}

// responded notes a response: what has piled up since the last one arrives now.
func (l *lane) responded(now time.Time) {
	if l.held {
		l.next = later(l.next, now.Add(rest))
		l.held, l.trickled = false, 0
	}
}

// took notes a call that the API has taken.
func (l *lane) took(granted, now time.Time) {
	l.forgetTaken(now)
	l.taken = append(l.taken, now)
	l.usual += smoothing * (now.Sub(granted).Seconds() - l.usual)
}

// want is how many own calls the next promise shall have a place for. It is never less than those under way.
func (l *lane) want(now time.Time) int {
	l.rollPeak(now)
	peak := max(l.out, l.peaks[0], l.peaks[1])
	return max(l.out, min(2*peak+promiseLeast, int(l.limit)))
}

// rollPeak begins a new peakTime if the last one is over.
func (l *lane) rollPeak(now time.Time) {
	switch d := now.Sub(l.peakFrom); {
	case d < peakTime:
		return
	case d < 2*peakTime:
		l.peaks = [2]int{l.out, l.peaks[0]}
	default:
		l.peaks = [2]int{l.out, l.out}
	}
	l.peakFrom = now
}

// throttle lowers the rate, once for all the calls that were granted before the last lowering could show.
func (l *lane) throttle(granted, now time.Time) {
	l.throttled++
	if !granted.After(l.slowed) {
		return
	}
	l.recover(now)
	l.forgetTaken(now)
	l.rate = max(1, l.limit*least, min(l.rate*step, float64(len(l.taken))*slowdown))
	l.floor, l.slowed = l.rate, now
}

// recover gives back what time has healed.
func (l *lane) recover(now time.Time) {
	if l.rate < l.limit {
		l.rate = min(l.limit, l.floor+l.limit*gain(now.Sub(l.slowed)))
	}
}

// gain is the share of the full rate that comes back within d after it was lowered.
func gain(d time.Duration) float64 {
	var sum float64
	for d, each := d-hold, firstGain; d > 0; d, each = d-doubling, min(2*each, mostGain) {
		sum += min(d, doubling).Seconds() * each
		if each == mostGain {
			return sum + max(0, d-doubling).Seconds()*each
		}
	}
	return sum
}

// forgetTaken forgets calls that were answered more than a second ago.
func (l *lane) forgetTaken(now time.Time) {
	old := 0
	for old < len(l.taken) && now.Sub(l.taken[old]) >= time.Second {
		old++
	}
	l.taken = l.taken[old:]
}
