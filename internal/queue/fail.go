//go:build !failpoint

package queue

import "time"

const (
	// maxBatchJobs and the checkpoint make 1,000 messages, the server's limit for an atomic batch.
	maxBatchJobs = 999

	// ackWait is how long a delivery is its worker's without a sign of life; see [Delivery.Working].
	ackWait = 60 * time.Second
)

// failpoint names a moment at which a process may die. It does nothing but in a build with the tag failpoint.
func failpoint(string) {}

// failInside names a moment that takes some time; see [failpoint].
func failInside(string) {}

// Failpoint is failpoint for what stands above.
func Failpoint(string) {}
