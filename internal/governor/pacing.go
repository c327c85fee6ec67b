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

	// ahead is how many calls above the usual number may be granted after the last call with a response. When an API
	// that stood still continues, they arrive together with the usual ones. At 50 ms a call that makes 10 + 12, and 5
	// of the trickle; 40 are allowed in 100 ms.
	ahead = 12

	// trickle is the pause until the next single call when that number is reached: the calls without a response may all
	// be on one broken connection. It doubles with each such call up to trickleMost, so there are 5 in the 10 s of a
	// call timeout.
	trickle     = 250 * time.Millisecond
	trickleMost = 4 * time.Second

	// rest is how long nothing is granted after the first response that follows.
	rest = 100 * time.Millisecond

	// smoothing is the weight of one call in the moving average of the call time.
	smoothing = 1.0 / 16

	// A throttled call lowers the rate to slowdown times the number of calls that the API accepted in the last second,
	// or to step times the rate if that is lower: the limit that the API enforces cannot be lower than what it
	// accepted. The rate stays above the full rate times least: an API that throttles at random, or because of other
	// callers, shows no limit.
	slowdown = 0.97
	step     = 0.95
	least    = 0.05

	// After that the rate stays the same for hold. Then it rises each second by firstGain of the full rate. After each
	// doubling without a throttled call the gain doubles, up to mostGain. So the rate finds the limit again, at the
	// cost of a throttled call now and then. If the limit is gone, it takes 21 s from half of the full rate to all of
	// it.
	hold      = 2 * time.Second
	firstGain = 0.005
	mostGain  = 0.05
	doubling  = 5 * time.Second

	// A promise is twice the most calls under way in the last peakTime to 2 × peakTime, plus promiseLeast. It should be
	// low: a successor keeps that many permits taken for the call timeout. But it should be able to double with each
	// renewal.
	peakTime     = 2 * time.Second
	promiseLeast = 8
)

// A lane holds the permits of one command. The lock of its governor is held in all methods.
type lane struct {
	command   string
	limit     float64     // calls a second, as configured
	rate      float64     // calls a second now: less than limit after a throttled call
	floor     float64     // the rate after the last throttled call
	slowed    time.Time   // the time of the last throttled call that lowered it
	accepts   []time.Time // times of the responses of the last second, without throttled calls
	inherited int         // permits of a predecessor's calls
	out       int         // permits whose call has not ended, or was cancelled and may still arrive
	granted   uint64      // counts the grants
	ended     uint64      // number of the latest grant whose call has ended
	usual     float64     // length of a call in seconds, smoothed
	cooling   []time.Time // when each cooling permit is free again, in order
	last      time.Time   // of the last grant
	next      time.Time   // the next grant in the steady stream
	held      bool        // too many calls went out ahead of the last response
	trickled  int         // grants since then
	peaks     [2]int      // the most calls under way: since peakFrom, and in the peakTime before
	peakFrom  time.Time
	ready     []*waiter     // by ticket; each is the first of its user
	waiting   int           // all waiters, also those behind another of the same user
	room      chan struct{} // closed when ready gets shorter; nil while nobody waits for that
	throttled int
}

// queue inserts a waiter that is the first of its user into ready, by the order of arrival.
func (l *lane) queue(w *waiter) {
	i, _ := slices.BinarySearchFunc(l.ready, w.ticket, func(o *waiter, t uint64) int { return cmp.Compare(o.ticket, t) })
	l.ready = slices.Insert(l.ready, i, w)
}

// shorter wakes the callers of [Governor.AwaitRoom]: ready got shorter.
func (l *lane) shorter() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// free reports whether a permit is free now, and if not, when to try again. The inherited permits are taken until the
// given time.
func (l *lane) free(now time.Time, inherited int, until time.Time) (time.Time, bool) {
	l.recover(now)
	for len(l.cooling) > 0 && !now.Before(l.cooling[0]) {
		l.cooling = l.cooling[1:]
	}
	if l.out+len(l.cooling)+inherited < int(l.rate) {
		return time.Time{}, true
	}
	var again time.Time // zero: only the end of a call frees one
	if len(l.cooling) > 0 {
		again = l.cooling[0]
	}
	if inherited > 0 && (again.IsZero() || until.Before(again)) {
		again = until
	}
	return again, false
}

// spaced reports whether the steady stream has a place for a call now, and if not, when to try again.
func (l *lane) spaced(now time.Time) (time.Time, bool) {
	if l.farAhead() {
		l.held = true
		if at := l.last.Add(min(trickle<<l.trickled, trickleMost)); now.Before(at) {
			return at, false
		}
	}
	return l.next, !now.Before(l.next)
}

// farAhead reports whether more calls were granted after the last one that ended than may arrive at once.
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

// release notes that a call is over. Its permit is free at the given time; at once if that is zero.
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

// responded notes a response: the calls that piled up since the last one arrive now.
func (l *lane) responded(now time.Time) {
	if l.held {
		l.next = later(l.next, now.Add(rest))
		l.held, l.trickled = false, 0
	}
}

// accepted notes a call that the API did not throttle.
func (l *lane) accepted(granted, now time.Time) {
	l.dropOld(now)
	l.accepts = append(l.accepts, now)
	l.usual += smoothing * (now.Sub(granted).Seconds() - l.usual)
}

// needed returns how many own calls the next promise should allow. It is never less than the calls under way.
func (l *lane) needed(now time.Time) int {
	l.rollPeak(now)
	peak := max(l.out, l.peaks[0], l.peaks[1])
	return max(l.out, min(2*peak+promiseLeast, int(l.limit)))
}

// rollPeak starts a new peakTime if the last one is over.
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

// throttle lowers the rate. Calls that were granted before the rate was last lowered do not lower it again.
func (l *lane) throttle(granted, now time.Time) {
	l.throttled++
	if !granted.After(l.slowed) {
		return
	}
	l.recover(now)
	l.dropOld(now)
	l.rate = min(l.limit, max(1, l.limit*least, min(l.rate*step, float64(len(l.accepts))*slowdown)))
	l.floor, l.slowed = l.rate, now
}

// recover raises the rate by what the time since the last throttled call allows.
func (l *lane) recover(now time.Time) {
	if l.rate < l.limit {
		l.rate = min(l.limit, l.floor+l.limit*gain(now.Sub(l.slowed)))
	}
}

// gain returns the share of the full rate that is regained within d after it was lowered.
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

// dropOld drops the responses that are older than a second.
func (l *lane) dropOld(now time.Time) {
	old := 0
	for old < len(l.accepts) && now.Sub(l.accepts[old]) >= time.Second {
		old++
	}
	l.accepts = l.accepts[old:]
}
