// Package conformance runs the upstream conformance suite of the Gateway API, unchanged: which features and
// profiles it tries, and where its report goes, are flags of the suite itself. `cargo xtask conformance` builds
// this into a program and gives it those flags.
package conformance

import (
	"testing"

	upstream "sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	upstream.RunConformance(t)
}
