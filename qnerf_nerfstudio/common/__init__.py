"""What every room uses: errors, files, images, processes, random numbers."""
