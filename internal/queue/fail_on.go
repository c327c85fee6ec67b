//go:build failpoint

package queue

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// failEnv is NAME or NAME:N. This build kills its own process, without a warning, when it comes to the failpoint NAME
// for the N-th time; it is for tests alone.
const failEnv = "GROUPFERRY_FAILPOINT"

var failName, failPasses = failWanted()

func failWanted() (string, *atomic.Int64) {
	name, times, _ := strings.Cut(os.Getenv(failEnv), ":")
	n, err := strconv.Atoi(times)
	if err != nil || n < 1 {
		n = 1
	}
	passes := &atomic.Int64{}
	passes.Store(int64(n))
	return name, passes
}

func failpoint(name string) {
	if name == failName && failPasses.Add(-1) == 0 {
		die()
	}
}

// failInside dies within the next two milliseconds, while the caller goes on.
func failInside(name string) {
	if name == failName && failPasses.Add(-1) == 0 {
		go func() {
			time.Sleep(rand.N(2 * time.Millisecond))
			die()
		}()
	}
}

func die() {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {}
}
