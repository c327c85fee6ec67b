// Package longtest marks the tests that take long, or start many processes: go test ./... leaves them out, and
// GROUPFERRY_LONG_TESTS=1 go test ./... runs them, as CI does.
package longtest

import (
	"os"
	"testing"
)

// Env is the variable that asks for the long tests, by any value.
const Env = "GROUPFERRY_LONG_TESTS"

// Asked reports whether the long tests are asked for.
func Asked() bool { return os.Getenv(Env) != "" }

// Only skips a test unless the long ones are asked for.
func Only(t testing.TB) {
	t.Helper()
	if !Asked() {
		t.Skip("takes long: set " + Env + "=1")
	}
}
