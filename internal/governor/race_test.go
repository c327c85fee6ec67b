//go:build race

package governor

import (
	"os"
	"runtime"
	"testing"
)

// TestMain leaves the tests one processor where the race detector watches. With two, as of Go 1.26, the detector itself
// breaks down every other time in a bubble of synctest that lives for long (golang/go#78156). A bubble is as good a test
// with one: its goroutines take turns at every wait all the same.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
