//go:build !failpoint

package queue

// failpoint names a moment at which a process may die. It does nothing but in a build with the tag failpoint.
func failpoint(string) {}

// failInside names a moment that takes some time; see [failpoint].
func failInside(string) {}
