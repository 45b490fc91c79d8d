// Package fetcher brings what a command's URIs name into its sandbox.
package fetcher

import mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"

// User is whom files are fetched as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Request is what one container wants fetched.
type Request struct {
	URIs     []*mesosv1.CommandInfo_URI
	Sandbox  string
	CacheKey string
	User     *User
}
