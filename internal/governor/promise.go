package governor

import "maps"

// A promise is what the lease record may say about calls under way. The zero value promises none.
//
// The record that a successor finds is the last one acknowledged, or one that was proposed since then and whose
// acknowledgement is missing. So the number in use is the least of all these.
type promise struct {
	acked map[string]int
	open  map[string]int // the least of each command that was proposed since; nil when nothing was
	last  map[string]int // the last proposal
}

// propose notes what the next renewal will say.
func (p *promise) propose(calls map[string]int) {
	p.last = maps.Clone(calls)
	if p.open == nil {
		p.open = maps.Clone(calls)
		return
	}
	for command, n := range p.open { // of a command that one of them does not name, none is promised
		p.open[command] = min(n, calls[command])
	}
}

// acknowledge notes what the record says now. If that is the last proposal, all before it are over.
func (p *promise) acknowledge(calls map[string]int) {
	p.acked = maps.Clone(calls)
	if p.open != nil && sameNumbers(calls, p.last) {
		p.open = nil
	}
}

// inUse is how many calls of a command may be under way.
func (p *promise) inUse(command string) int {
	n := p.acked[command]
	if p.open != nil {
		n = min(n, p.open[command])
	}
	return n
}

// latest is what the last proposal said, acknowledged or not.
func (p *promise) latest(command string) int { return p.last[command] }

// sameNumbers compares two promises; a command that one of them does not name has 0 in it.
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
