package governor

import "maps"

// A promise is what the lease record may say about calls under way. The zero value promises none.
//
// A successor finds the last record that was acknowledged, or one that was proposed since then and whose
// acknowledgement is missing. So the number in use is the least of all these.
type promise struct {
	acked map[string]int
	open  map[string]int // the least number proposed since, by command; nil if nothing was
	last  map[string]int // the last proposal
}

// propose notes what the next renewal will say.
func (p *promise) propose(calls map[string]int) {
	p.last = maps.Clone(calls)
	if p.open == nil {
		p.open = maps.Clone(calls)
		return
	}
	for command, n := range p.open { // a command that one of them does not name has 0
		p.open[command] = min(n, calls[command])
	}
}

// acknowledge notes what the record says now. If that is the last proposal, no other is open.
func (p *promise) acknowledge(calls map[string]int) {
	p.acked = maps.Clone(calls)
	if p.open != nil && sameNumbers(calls, p.last) {
		p.open = nil
	}
}

// inUse returns how many calls of a command may be under way.
func (p *promise) inUse(command string) int {
	n := p.acked[command]
	if p.open != nil {
		n = min(n, p.open[command])
	}
	return n
}

// latest returns what the last proposal said, acknowledged or not.
func (p *promise) latest(command string) int { return p.last[command] }

// sameNumbers reports whether two promises are equal. A command that one of them does not name has 0 there.
func sameNumbers(a, b map[string]int) bool {
	for command, n := range a {
		if b[command] != n {
			return false
		}
	}
	for command, n := range b {
		if a[command] != n {
			return false
		}
	}
	return true
}
