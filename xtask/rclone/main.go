// Command rclone is the rclone of the document "The archive store", with only what its commands use: folders, S3 and `copy`. The whole
// program has seventy kinds of stores, whose libraries would take minutes to build.
package main

import (
	_ "github.com/rclone/rclone/backend/local"
	_ "github.com/rclone/rclone/backend/s3"
	"github.com/rclone/rclone/cmd"
	_ "github.com/rclone/rclone/cmd/copy"
)

func main() {
	cmd.Main()
}
