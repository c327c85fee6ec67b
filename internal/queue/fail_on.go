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

// failEnv is NAME, NAME:N or NAME:N:TIME. This build kills its own process, without a warning, when it comes to the
// failpoint NAME for the N-th time; with a time, it holds whoever came there for so long, and the others go on. It is
// for tests alone.
const failEnv = "GROUPFERRY_FAILPOINT"

// ackWaitEnv changes ackWait, which is a minute otherwise: a test of many lives has no time for that, or wants to see
// who waits for it.
const ackWaitEnv = "GROUPFERRY_FAILPOINT_ACK_WAIT"

// maxBatchJobs is small here, so that a small import goes onto the queue in many pieces.
const maxBatchJobs = 17

var ackWait = failTime(os.Getenv(ackWaitEnv), time.Minute)

var failName, failPasses, failHold = failWanted()

func failWanted() (string, *atomic.Int64, time.Duration) {
	fields := append(strings.Split(os.Getenv(failEnv), ":"), "", "")
	n, err := strconv.Atoi(fields[1])
	if err != nil || n < 1 {
		n = 1
	}
	passes := &atomic.Int64{}
	passes.Store(int64(n))
	return fields[0], passes, failTime(fields[2], 0)
}

func failTime(s string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(s); err == nil {
		return d
	}
	return otherwise
}

func failpoint(name string) {
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

// Failpoint is failpoint for what stands above.
func Failpoint(name string) { failpoint(name) }
