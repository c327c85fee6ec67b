package chat

import (
	"bytes"
	"compress/zlib"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
)

// maxSigJSON bounds what a UserSig unpacks to, in bytes. A genuine one has about 200.
const maxSigJSON = 4 << 10

// sigEncoding is base64 with the three characters replaced that mean something in a query.
var sigEncoding = base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-").WithPadding('_')

// userSig is what a UserSig of version 2 holds.
type userSig struct {
	Version    string `json:"TLS.ver"`
	Identifier string `json:"TLS.identifier"`
	SDKAppID   uint64 `json:"TLS.sdkappid"`
	Expire     int64  `json:"TLS.expire"` // lifetime, seconds
	Time       int64  `json:"TLS.time"`   // when it was signed, seconds since 1970
	Sig        string `json:"TLS.sig"`
}

// mac signs the four facts. The key is the text of the secret, not what its hex digits stand for.
func (s *userSig) mac(key Secret) string {
	h := hmac.New(sha256.New, []byte(key.Reveal()))
	fmt.Fprintf(h, "TLS.identifier:%s\nTLS.sdkappid:%d\nTLS.time:%d\nTLS.expire:%d\n",
		s.Identifier, s.SDKAppID, s.Time, s.Expire)
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func (s *userSig) expiry() int64 {
	if s.Expire > math.MaxInt64-max(s.Time, 0) {
		return math.MaxInt64
	}
	return s.Time + s.Expire
}

// SignUserSig makes a UserSig of version 2: it lets identifier call the API of the app from now until the lifetime,
// counted in whole seconds, is over.
func SignUserSig(key Secret, sdkAppID uint64, identifier string, now time.Time, lifetime time.Duration) Secret {
	s := userSig{
		Version:    "2.0",
		Identifier: identifier,
		SDKAppID:   sdkAppID,
		Expire:     int64(lifetime / time.Second),
		Time:       now.Unix(),
	}
	s.Sig = s.mac(key)
	text, err := json.Marshal(s)
	if err != nil { // strings and integers always marshal
		panic(err)
	}
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	z.Write(text) // a bytes.Buffer takes everything
	z.Close()
	return Secret(sigEncoding.EncodeToString(b.Bytes()))
}

// VerifyUserSig checks sig as the API does. It returns 0, or the code that the API responds with: [CodeSigEmpty],
// [CodeSigUnparsable], [CodeSigOtherApp], [CodeSigOtherIdentifier], [CodeSigExpired] or [CodeSigWrongKey], the first
// that applies in this order.
func VerifyUserSig(sig string, key Secret, sdkAppID uint64, identifier string, now time.Time) int {
	if sig == "" {
		return CodeSigEmpty
	}
	s, err := parseUserSig(sig)
	switch {
	case err != nil:
		return CodeSigUnparsable
	case s.SDKAppID != sdkAppID:
		return CodeSigOtherApp
	case s.Identifier != identifier:
		return CodeSigOtherIdentifier
	case now.Unix() > s.expiry():
		return CodeSigExpired
	case !hmac.Equal([]byte(s.mac(key)), []byte(s.Sig)):
		return CodeSigWrongKey
	}
	return 0
}

// UserSigExpiry reads from a UserSig when it ends, without checking it: the last second in which it is taken.
// The error says what is wrong with the form of the text, and does not hold it.
func UserSigExpiry(sig string) (time.Time, error) {
	s, err := parseUserSig(sig)
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(s.expiry(), 0), nil
}

var errSigForm = errors.New("no UserSig of version 2")

func parseUserSig(sig string) (*userSig, error) {
	packed, err := sigEncoding.DecodeString(sig)
	if err != nil {
		return nil, fmt.Errorf("%w: not in its base64", errSigForm)
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("%w: not compressed by zlib", errSigForm)
	}
	text, err := io.ReadAll(io.LimitReader(z, maxSigJSON+1))
	if err != nil || len(text) > maxSigJSON {
		return nil, fmt.Errorf("%w: does not unpack to at most %s bytes", errSigForm, strconv.Itoa(maxSigJSON))
	}
	s := new(userSig)
	if err := json.Unmarshal(text, s); err != nil || s.Version != "2.0" {
		return nil, fmt.Errorf("%w: holds something else", errSigForm)
	}
	return s, nil
}
