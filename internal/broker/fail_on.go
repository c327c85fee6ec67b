//go:build failpoint

package broker

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Failpoints tells whether this build has failpoints.
const Failpoints = true

// failEnv is NAME, NAME:N or NAME:N:TIME. This build kills its own process, without a warning, when it comes to the
// failpoint NAME for the N-th time; with a time, it holds whoever came there for so long, and the others go on. It is
// for tests alone.
const failEnv = "GROUPFERRY_FAILPOINT"

var failName, failPasses, failHold = failWanted()

func failWanted() (string, *atomic.Int64, time.Duration) {
	fields := append(strings.Split(os.Getenv(failEnv), ":"), "", "")
	n, err := strconv.Atoi(fields[1])
	if err != nil || n < 1 {
		n = 1
	}
	passes := &atomic.Int64{}
	passes.Store(int64(n))
	return fields[0], passes, parseTime(fields[2], 0)
}

func parseTime(s string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(s); err == nil {
		return d
	}
	return otherwise
}

// FailTime returns the duration in the environment variable name, or d if there is none.
func FailTime(name string, d time.Duration) time.Duration { return parseTime(os.Getenv(name), d) }

// Failpoint kills the process, or holds the caller, if the environment says so; see failEnv.
func Failpoint(name string) {
	if name != failName || failPasses.Add(-1) != 0 {
		return
	}
	if failHold > 0 {
		os.Stderr.WriteString("failpoint: held at " + name + "\n")
		time.Sleep(failHold)
		os.Stderr.WriteString("failpoint: on from " + name + "\n")
		return
	}
	die()
}

// FailInside kills the process within the next two milliseconds, while the caller goes on.
func FailInside(name string) {
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
