//go:build !failpoint

package broker

import "time"

// Failpoints tells whether this build has failpoints; a build for tests, with the tag failpoint, has them.
const Failpoints = false

// Failpoint names a moment at which a process may die. It does nothing but in a build with the tag failpoint.
func Failpoint(string) {}

// FailInside names a moment that takes some time; see [Failpoint].
func FailInside(string) {}

// FailTime returns d, but in a build with the tag failpoint: there the environment variable name may say otherwise.
func FailTime(_ string, d time.Duration) time.Duration { return d }
