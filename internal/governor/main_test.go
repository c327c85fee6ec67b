package governor

import (
	"os"
	"runtime"
	"testing"
)

// TestMain leaves the tests one processor. A bubble of synctest is as good a test with one: its goroutines take turns at
// every wait all the same, and a scenario with a seed repeats itself more often. With two, as of Go 1.26, the race detector
// itself breaks down every other time in a bubble that runs for long (golang/go#78156).
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
