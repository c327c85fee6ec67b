package chat

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// Reach reports whether a connection to the API can be made from here: TCP, and TLS where the address is https. It sends
// no request, so it needs no permit and counts against no limit. Where calls go through a proxy, it is the connection to
// the proxy that is tried, and what is behind it is not known.
func (c *Client) Reach(ctx context.Context) error {
	base := &c.base
	tlsTo := c.base.Hostname()
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: base})
	if err != nil {
		return fmt.Errorf("connect to the API: %w", err)
	}
	if proxy != nil {
		base, tlsTo = proxy, proxy.Hostname()
	}
	port := base.Port()
	if port == "" {
		port = map[string]string{"http": "80", "socks5": "1080", "socks5h": "1080"}[base.Scheme]
		if port == "" {
			port = "443"
		}
	}
	address := net.JoinHostPort(base.Hostname(), port)
	var conn net.Conn
	if base.Scheme == "https" {
		d := tls.Dialer{Config: &tls.Config{ServerName: tlsTo, MinVersion: tls.VersionTLS12}}
		conn, err = d.DialContext(ctx, "tcp", address)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return fmt.Errorf("connect to the API at %s: %w", address, err)
	}
	return conn.Close()
}

// Stages of a connection; see [StageOf].
const (
	StageDNS = "DNS"
	StageTCP = "TCP"
	StageTLS = "TLS"
)

// StageOf says in which stage [Client.Reach] failed.
func StageOf(err error) string {
	var op *net.OpError
	switch {
	case errors.As(err, new(*net.DNSError)):
		return StageDNS
	case errors.As(err, &op) && op.Op == "dial":
		return StageTCP
	}
	return StageTLS // all else comes from the handshake, which begins when the connection stands
}
