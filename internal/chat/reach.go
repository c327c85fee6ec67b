package chat

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
)

// Reach tells whether a connection to the API can be made from here: TCP, and TLS where the address is https. It sends
// no request, so it needs no permit and counts against no limit.
func (c *Client) Reach(ctx context.Context) error {
	host, port := c.base.Hostname(), c.base.Port()
	if port == "" {
		port = "443"
		if c.base.Scheme == "http" {
			port = "80"
		}
	}
	address := net.JoinHostPort(host, port)
	var conn net.Conn
	var err error
	if c.base.Scheme == "https" {
		d := tls.Dialer{Config: &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}}
		conn, err = d.DialContext(ctx, "tcp", address)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return fmt.Errorf("connect to the API at %s: %w", address, err)
	}
	return conn.Close()
}
