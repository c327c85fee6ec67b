package chat

import (
	"fmt"
	"io"
	"log/slog"
)

// A Secret is a secret key or a UserSig. However it is formatted, marshalled or logged, the text is "(secret)".
//
// Formatting cannot protect it in an unexported field, where package fmt calls no methods: whoever keeps one there
// keeps a pointer to it.
type Secret string

const hidden = "(secret)"

// Reveal gives the secret itself.
func (s Secret) Reveal() string { return string(s) }

func (Secret) String() string { return hidden }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return hidden }

// Format hides the secret from every verb, %x and %d included.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// MarshalText hides the secret from encoders, JSON included.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// LogValue hides the secret from package slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }
