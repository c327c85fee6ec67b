package broker

import (
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// readingSubject is where processes say that they read much. It is outside all namespaces: one server serves them all.
	readingSubject = "groupferry-reading"

	// readingEvery is how often they say it.
	readingEvery = time.Second

	// readingHold is how long it counts. The server keeps for 10 seconds what it read from the disk.
	readingHold = 15 * time.Second

	// readingMemory is what the process that runs the server may take then, or readingMargin more than what it needs if
	// that is more.
	readingMemory = 96 << 20
	readingMargin = 64 << 20
)

// Reading says that much is being read, such as all results of an import. It is to be called again and again meanwhile; it
// costs nothing.
//
// The server reads blocks of 8 MB, and keeps each for a while, in a way that lets the garbage collector take it. That
// lets the memory double each time before it does so: reading 2 million results takes 550 MB. So the process that runs
// the embedded server, this one or another, bounds its memory as long as somebody reads, which costs no CPU time that can
// be measured. Without such a bound at other times it cannot get too narrow for what the process has to keep.
func (c *Conn) Reading() {
	if c.embedded == nil {
		return
	}
	now, last := time.Now().UnixNano(), c.saidReading.Load()
	if now-last < int64(readingEvery) || !c.saidReading.CompareAndSwap(last, now) {
		return
	}
	_ = c.nc.Publish(readingSubject, nil) // a hint: without a connection nothing is read either
}

// boundMemory bounds the memory of this process while somebody reads much from the server that it runs.
func (c *Conn) boundMemory() error {
	_, err := c.nc.Subscribe(readingSubject, func(*nats.Msg) {
		if c.Embedded() {
			memory.bound(readingHold)
		}
	})
	return err
}

// A memoryBound is the soft memory limit of the process while somebody reads.
type memoryBound struct {
	mu    sync.Mutex
	until time.Time // zero: not in force
	was   int64     // the limit before
}

var memory memoryBound // of the process, like the limit

// bound makes the limit last for so long from now on.
func (m *memoryBound) bound(hold time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until.IsZero() {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		m.was = debug.SetMemoryLimit(-1) // does not set it
		debug.SetMemoryLimit(min(m.was, max(readingMemory, int64(live[0].Value.Uint64())+readingMargin)))
		time.AfterFunc(hold, m.lift)
	}
	m.until = time.Now().Add(hold)
}

func (m *memoryBound) lift() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := time.Until(m.until); left > 0 {
		time.AfterFunc(left, m.lift)
		return
	}
	m.until = time.Time{}
	debug.SetMemoryLimit(m.was)
}
