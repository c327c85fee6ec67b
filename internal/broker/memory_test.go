package broker

import (
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// The process that runs the embedded server bounds its memory while another one reads.
func TestReading(t *testing.T) {
	dir := t.TempDir()
	before := debug.SetMemoryLimit(-1)
	server := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir})
	if guest.Embedded() || !server.Embedded() {
		t.Fatal("the second connection runs the server")
	}
	guest.Reading()
	waitFor(t, "a bound of the memory", func() bool { return debug.SetMemoryLimit(-1) != before })
	if got := debug.SetMemoryLimit(-1); got < readingMemory {
		t.Errorf("got a limit of %d, want %d at least", got, readingMemory)
	}
	memory.mu.Lock()
	memory.until = time.Now()
	memory.mu.Unlock()
	memory.lift()
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("afterwards: got a limit of %d, want %d", got, before)
	}
}

func TestMemoryBound(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	synctest.Test(t, func(t *testing.T) {
		var m memoryBound
		limit := func() int64 { return debug.SetMemoryLimit(-1) }
		m.bound(10 * time.Second)
		bounded := limit()
		if bounded < readingMemory || bounded == before {
			t.Errorf("got a limit of %d, want %d at least, and not %d", bounded, readingMemory, before)
		}
		time.Sleep(9 * time.Second)
		m.bound(10 * time.Second)
		time.Sleep(9 * time.Second)
		if got := limit(); got != bounded {
			t.Errorf("18 s later: got a limit of %d, want %d", got, bounded)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := limit(); got != before {
			t.Errorf("at the end: got a limit of %d, want %d", got, before)
		}

		debug.SetMemoryLimit(40 << 20)
		m.bound(time.Second)
		if got := limit(); got != 40<<20 {
			t.Errorf("with a lower limit from outside: got %d, want that", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		debug.SetMemoryLimit(before)
	})
}
