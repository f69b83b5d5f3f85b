from covrl.cli import main

main()
